"""What `bench_kernels` asks of the kernels, and which of it was missed."""

from __future__ import annotations

JUDGED_BYTES = {"attention": 200e6, "ssd": 250e6, "gdn": 250e6}
ATTENTION_TARGETS = {"float16": 0.75, "float8": 0.60, "8": 0.60, "4": 0.45, "mixed": 0.45}
STATE_TARGET = 0.80
SPEEDUP_TARGETS = {"paged": 3.0, "rebuilt": 2.0, "rotated": 1.3}
"""Over attention on full keys and values, by the second word of a name; what is read in two passes
moves rows and scratch more than once."""
CHOICE_ROOM = 1.1
"""The way that is chosen for a chunk may take this much longer than the other."""


def is_judged(group: str, num_bytes: float) -> bool:
    """Whether a launch of a group moves enough bytes for its share of the bandwidth to count."""
    return num_bytes >= JUDGED_BYTES.get(group.split(maxsplit=1)[0], float("inf"))


def judge(rows: list[dict]) -> list[str]:
    """Targets that were missed: shares of bandwidth, attention against full K/V, and the choice
    between the ways of a chunk."""
    missed = [
        f"{row['name']}: {row['share_of_copy']:.2f} of the copy bandwidth, {row['target']} is due"
        for row in rows
        if row["target"] is not None and row["share_of_copy"] < row["target"]
    ]
    for group in {row["group"] for row in rows}:
        members = {row["name"]: row for row in rows if row["group"] == group}
        full = next((row for name, row in members.items() if "SDPA full" in name), None)
        if full is None:
            continue
        for row in members.values():
            row["speedup"] = full["us"] / row["us"]
        if group.startswith("prefill"):
            missed += _wrong_choices(list(members.values()))
            continue
        exact: dict[int, float] = {}
        for name, row in members.items():
            if name.startswith("latent_decode paged float16"):
                exact[row["rank"]] = row["us"]
        for name, row in members.items():
            at_32k = row["context"] == 32768 and row["batch"] in (8, 32)
            due = SPEEDUP_TARGETS.get(name.split()[1], 0.0)
            quarter = row["bytes"] <= 0.26 * full["bytes"]
            if at_32k and quarter and row["speedup"] < due:
                missed.append(f"{name}: {row['speedup']:.2f}x SDPA, {due}x is due")
            coded = name.startswith("latent_decode paged") and row["codec"] != "float16"
            large = is_judged(group, row["bytes"])
            if coded and large and row["us"] > exact.get(row["rank"], row["us"]):
                missed.append(f"{name}: slower than the same rank in 16 bits")
    return missed


def _wrong_choices(rows: list[dict]) -> list[str]:
    """Chunks of one group that are met in the slower of the two ways."""
    wrong = []
    for chosen in (row for row in rows if row.get("chosen")):
        for other in rows:
            same = other.get("kind") == chosen["kind"] and not other["chosen"]
            if same and chosen["us"] > CHOICE_ROOM * other["us"]:
                wrong.append(
                    f"{chosen['name']}: chosen, and takes {chosen['us'] / other['us']:.2f} times "
                    "as long as the other way"
                )
    return wrong
