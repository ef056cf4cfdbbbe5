"""Tables of prefix reuse."""

from __future__ import annotations

from typing import Any

from cacheshrink_hybrid.cli.prefix import OURS, best_of, is_published

from .markdown import table

Results = list[dict[str, Any]]


def strategies(results: Results) -> str:
    """Ours beside the best of the others, by workload and budget; last the mean over the best
    published, and in how many cells ours is at most 1 % behind the best of all others."""
    rows = results[0]["rows"]
    cells = dict.fromkeys((row["workload"], row["budget_share"]) for row in rows)
    lines, ratios, near = [], [], 0
    for workload, share in cells:
        here = [r for r in rows if (r["workload"], r["budget_share"]) == (workload, share)]
        ours = next(r for r in here if (r["placement"], r["eviction"]) == OURS)
        published = best_of([r for r in here if is_published(r)])
        other = best_of([r for r in here if r is not ours])
        ratios.append(ours["saved_tokens"] / published["saved_tokens"])
        near += ours["saved_tokens"] >= 0.99 * other["saved_tokens"]
        lines.append(
            (
                workload,
                f"{100 * share:g} %",
                _percent(ours),
                _named(published),
                f"{ratios[-1]:.2f}",
                _named(other),
            )
        )
    mean = f"{sum(ratios) / len(ratios):.2f}"
    lines.append(("mean", "", "", "", mean, f"within 1 % in {near} of {len(cells)}"))
    return table(
        ("workload", "budget", "learned", "best published", "ratio", "best of all others"), lines
    )


def held_out(results: Results) -> str:
    """Ours over the best published strategy, by seed of the workloads: that on which constants were
    chosen, then others. Strategies that not all results have are left out."""
    seeds = [result["seed"] for result in results]
    pairs = set.intersection(*({_pair(r) for r in x["rows"]} for x in results))
    cells = dict.fromkeys((r["workload"], r["budget_share"]) for r in results[0]["rows"])
    lines, others = [], []
    for workload, share in cells:
        ratios = []
        for result in results:
            here = [
                row
                for row in result["rows"]
                if (row["workload"], row["budget_share"]) == (workload, share)
                and _pair(row) in pairs
            ]
            ours = next(row for row in here if _pair(row) == OURS)
            best = best_of([row for row in here if is_published(row)])
            ratios.append(ours["saved_tokens"] / best["saved_tokens"])
        others += ratios[1:]
        lines.append((workload, f"{100 * share:g} %", *(f"{ratio:.2f}" for ratio in ratios)))
    mean = f"{sum(others) / len(others):.2f}"
    lines.append(("mean of the other seeds", "", "", mean, *[""] * (len(seeds) - 2)))
    return table(("workload", "budget", *(f"seed {seed}" for seed in seeds)), lines)


def policies(results: Results) -> str:
    """Share saved, the mean of all workloads and budgets, by eviction and placement."""
    rows = results[0]["rows"]
    placements = list(dict.fromkeys(row["placement"] for row in rows))
    lines = []
    for eviction in dict.fromkeys(row["eviction"] for row in rows):
        shares = []
        for placement in placements:
            here = [row["saved_share"] for row in rows if _pair(row) == (placement, eviction)]
            shares.append(f"{100 * sum(here) / len(here):.1f} %")
        lines.append((eviction, *shares))
    return table(("eviction", *placements), lines)


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return row["placement"], row["eviction"]


def widths(results: Results) -> str:
    """Share saved in equal bytes, by how states and rows are stored."""
    rows = results[0]["rows"]
    names = list(dict.fromkeys(row["width"] for row in rows))
    found = {(r["workload"], r["budget_share"], r["width"]): _percent(r) for r in rows}
    cells = dict.fromkeys((row["workload"], row["budget_share"]) for row in rows)
    return table(
        ("workload", "budget", *names),
        (
            (workload, f"{100 * share:g} %", *(found[workload, share, name] for name in names))
            for workload, share in cells
        ),
    )


def kept_states(results: Results) -> str:
    """What is lost after a hit, by how states are kept."""
    rows = results[0]["runs"]
    names = ("model", "states kept", "KiB", "perplexity, one hit", "KL", "a hit per turn", "KL")
    return table(
        (*names, "recalled"),
        (
            (
                row["model"],
                row["states kept"],
                f"{row['bytes'] / 1024:.0f}",
                _change(row, "once"),
                f"{row['once: KL']:.1e}",
                _change(row, "turns"),
                f"{row['turns: KL']:.1e}",
                f"{row['recalled']} of {row['recalled cold']}",
            )
            for row in rows
        ),
    )


def _change(row: dict[str, Any], group: str) -> str:
    return f"{row[f'{group}: change %']:+.3f} % ± {row[f'{group}: error %']:.3f}"


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['saved_share']:.1f} %"


def _named(row: dict[str, Any]) -> str:
    return f"{_percent(row)} ({row['placement']}, {row['eviction']})"
