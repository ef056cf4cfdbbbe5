"""The program `allocator`: request traces over cache allocators."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import PlanError
from ..evaluation.allocation.allocator import Sizes
from ..evaluation.allocation.allocators import ALLOCATORS
from ..evaluation.allocation.latency import measure_latency
from ..evaluation.allocation.replay import capacity_for, replay, replay_without_admission
from ..evaluation.allocation.traces import SYNTHETIC, Request, read_trace, synthetic_trace
from ..evaluation.reference_models import REFERENCE_MODELS, ReferenceModel
from ..text_tables import format_table
from ..writing import write_text
from .plots import plot_bars
from .report import write_json

WIDTHS = {"16 bits": (1.0, "bf16"), "4x, int8 states": (4.0, "int8")}
LOOSE_ALLOCATORS = ("frames", "migrating", "fixed_dual 0.474", "fixed_dual 0.9", "padded")
OURS, BOUND = "frames", "bytes alone"
COMPARED = ("two_ended", "uniform_page", "lcm", "fixed_dual 0.474")
NOBODY_WAITED = "nobody waited"
POOL_SIZES = (1_000, 10_000, 100_000, 1_000_000)


def run(given: argparse.Namespace) -> int:
    models = [model for model in REFERENCE_MODELS if model.name in given.models]
    records: list[dict[str, Any]] = []
    loose: list[dict[str, Any]] = []
    for trace in given.traces:
        if trace in SYNTHETIC:
            requests = synthetic_trace(trace, given.requests, given.seed)
        else:
            requests = read_trace(Path(trace), given.requests, given.seed)
        name = Path(trace).stem
        print(f"replaying {name}: {len(requests)} requests", flush=True)
        for model in models:
            for width, (ratio, codec) in WIDTHS.items():
                sizes = Sizes(model.layer_rows(ratio), model.state_rows(codec))
                capacity = capacity_for(sizes, requests, given.concurrency)
                about = {"trace": name, "model": model.name, "width": width}
                records += _honest(sizes, capacity, requests, about)
        loose += _loose(models[0], name, requests, given.concurrency)

    print("measuring the time per call", flush=True)
    latency = measure_latency(POOL_SIZES, (1, 64))
    text = _markdown(records, loose, latency)
    print("\n" + text)
    write_text(given.output / "allocator.md", text)
    results = {"program": "allocator", "requests": given.requests, "seed": given.seed}
    write_json(
        given.output / "allocator.json",
        {**results, "replays": records, "without_admission": loose, "latency": latency},
    )
    _plot(given.output / "allocator.png", records)
    print(f"table and plot: {given.output / 'allocator.md'}, {given.output / 'allocator.png'}")
    return 0


def _honest(
    sizes: Sizes, capacity: int, requests: Sequence[Request], about: dict[str, Any]
) -> list[dict[str, Any]]:
    records = []
    for name, make in ALLOCATORS.items():
        record = {**about, "allocator": name, "capacity_bytes": capacity}
        try:
            record |= replay(make(sizes, capacity), requests).to_dict()
        except PlanError as error:
            record |= {"infeasible": str(error)}
        records.append(record)
    return records


def _loose(
    model: ReferenceModel, trace: str, requests: Sequence[Request], concurrency: int
) -> list[dict[str, Any]]:
    sizes = Sizes(model.layer_rows(), model.state_rows("bf16"))
    capacity = capacity_for(sizes, requests, concurrency)
    records = []
    for name in LOOSE_ALLOCATORS:
        outcome = replay_without_admission(ALLOCATORS[name](sizes, capacity), requests)
        records.append(
            {
                "trace": trace,
                "model": model.name,
                "allocator": name,
                "OOM events": outcome.oom_events,
                "completed, as counted": outcome.completed,
                "corrupted among them": outcome.corrupted,
                "goodput, requests/s of simulator": round(outcome.goodput),
            }
        )
    return records


def _markdown(
    records: list[dict[str, Any]], loose: list[dict[str, Any]], latency: list[dict[str, Any]]
) -> str:
    parts = ["# Cache allocators on the same requests and bytes\n"]
    for trace, width in dict.fromkeys((r["trace"], r["width"]) for r in records):
        rows: dict[str, dict[str, Any]] = {}
        chosen = [r for r in records if (r["trace"], r["width"]) == (trace, width)]
        for record in chosen:
            row = rows.setdefault(record["allocator"], {"allocator": record["allocator"]})
            row[record["model"]] = _cell(record)
        parts.append(f"## {trace}, {width}\n")
        parts.append(
            "Mean running sequences while others wait; useful bytes of the arena. Then, if any: "
            "p preemptions, GiB moved, requests rejected. Where the memory is enough for all "
            "requests at once, nobody waits, and there is nothing to compare: give more "
            "--requests, or a lower --concurrency.\n"
        )
        parts.append(format_table(list(rows.values())) + "\n")
        parts.append(
            "Mean running sequences of `frames` over those of each other allocator; in brackets "
            "the most that any allocator could show, those of `bytes alone` over the same.\n"
        )
        parts.append(format_table(_advantages(chosen)) + "\n")
    parts.append("## Without admission\n")
    parts.append(
        "The rule of simulators that take every request at once and drop the memory of live ones. "
        "Corrupted requests count as completed there.\n"
    )
    parts.append(format_table(loose) + "\n")
    parts.append("## Time per call of the frame ledger\n")
    parts.append(format_table(latency) + "\n")
    return "\n".join(parts)


def _advantages(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per allocator and model: how many times as many sequences frames run, and the bound of it."""
    found = {
        (record["allocator"], record["model"]): record["concurrency"]
        for record in records
        if record.get("concurrency")
    }
    models = list(dict.fromkeys(record["model"] for record in records))
    rows = []
    for other in COMPARED:
        row: dict[str, Any] = {"frames over": other}
        for model in models:
            ours, most, theirs = (found.get((name, model)) for name in (OURS, BOUND, other))
            if ours and most and theirs:
                row[model] = f"{ours / theirs:.2f} ({most / theirs:.2f})"
            else:
                row[model] = "-"  # infeasible, or nobody ever waits
        rows.append(row)
    return rows


def _cell(record: dict[str, Any]) -> str:
    if "infeasible" in record:
        return "infeasible"
    if not record["concurrency"]:
        return NOBODY_WAITED
    text = f"{record['concurrency']:.1f}, {100 * record['useful_share']:.1f} %"
    if record["preemptions"]:
        text += f", {record['preemptions']} p"
    if record["moved_bytes"]:
        text += f", {record['moved_bytes'] / 2**30:.1f} GiB"
    if record["rejected"]:
        text += f", {record['rejected']} rejected"
    return text


def _plot(path: Path, records: list[dict[str, Any]]) -> None:
    """Mean concurrency by model on the first trace with churn, or on the first one."""
    traces = list(dict.fromkeys(record["trace"] for record in records))
    trace = "churn" if "churn" in traces else traces[0]
    width = list(WIDTHS)[-1]
    groups: dict[str, dict[str, float | None]] = {}
    for record in records:
        if (record["trace"], record["width"]) == (trace, width):
            group = groups.setdefault(record["model"], {})
            group[record["allocator"]] = record.get("concurrency")
    plot_bars(path, groups, f"Trace {trace}, {width}", "mean running sequences", zero=NOBODY_WAITED)
