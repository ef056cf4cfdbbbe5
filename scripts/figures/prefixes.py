"""Tables of prefix reuse."""

from __future__ import annotations

from typing import Any

from cacheshrink_hybrid.cli.prefix import OURS, best_of, is_published

from .markdown import table

Results = list[dict[str, Any]]


def strategies(results: Results) -> str:
    """Ours beside the best of the others, by workload and budget."""
    rows = results[0]["rows"]
    cells = dict.fromkeys((row["workload"], row["budget_share"]) for row in rows)
    lines = []
    for workload, share in cells:
        here = [r for r in rows if (r["workload"], r["budget_share"]) == (workload, share)]
        ours = next(r for r in here if (r["placement"], r["eviction"]) == OURS)
        published = best_of([r for r in here if is_published(r)])
        other = best_of([r for r in here if r is not ours])
        lines.append(
            (
                workload,
                f"{100 * share:g} %",
                _percent(ours),
                _named(published),
                f"{ours['saved_tokens'] / published['saved_tokens']:.2f}",
                _named(other),
            )
        )
    return table(
        ("workload", "budget", "learned", "best published", "ratio", "best of all others"), lines
    )


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


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['saved_share']:.1f} %"


def _named(row: dict[str, Any]) -> str:
    return f"{_percent(row)} ({row['placement']}, {row['eviction']})"
