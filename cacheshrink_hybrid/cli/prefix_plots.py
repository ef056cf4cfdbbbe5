"""Pictures of the study of prefix reuse; all of them take matplotlib, and raise `OutputError` where
they cannot be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .plots import COLOUR, OTHER_COLOUR, load_pyplot, save_figure, spread_labels

Row = dict[str, Any]
BINS = 32
"""Of a histogram."""
MOST_LINES = 5
"""Placements whose positions are shown, the best ones."""


def plot_savings(path: Path, rows: Sequence[Row], ours: tuple[str, str]) -> None:
    """Share of prompt tokens saved against states kept, a picture for each workload in the first
    budget: `ours`, and every other placement with the eviction that serves it best.

    Args:
        rows: dicts with `workload`, `width`, `budget_share`, `placement`, `eviction`,
            `saved_share` and `checkpoints`; those of the first width are shown.
        ours: placement and eviction that are marked.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    shown = _first_cell(rows)
    names = list(dict.fromkeys(row["workload"] for row in shown))
    across = min(3, len(names))
    figure, grid = _grid(-(-len(names) // across), across)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for name, axes in zip(names, grid.flat, strict=False):
        best = _best_of_each([row for row in shown if row["workload"] == name], ours)
        middle = median(row["checkpoints"] for row in best.values())
        labels = []
        for placement, row in best.items():
            place = row["checkpoints"], 100 * row["saved_share"]
            axes.plot(*place, "o", color=OTHER_COLOUR if placement == ours[0] else COLOUR)
            left = row["checkpoints"] > middle  # of its point, so that it stays within the frame
            label = axes.annotate(
                f"{placement}, {row['eviction']}",
                place,
                xytext=(-5 if left else 5, 3),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=7,
            )
            labels.append(label)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("states kept, mean")
        axes.set_ylabel("prompt tokens saved, %")
        axes.margins(0.35, 0.15)
        axes.grid(alpha=0.3)
        spread_labels(axes, labels)
    save_figure(figure, path)


def plot_requests(
    path: Path, rows: Sequence[Row], requests: Sequence[Row], ours: tuple[str, str]
) -> None:
    """Request by request, three pictures for each workload in the first budget: how far prompts
    begin like kept ones, where they go on from, and the share of the former that the latter is.
    `ours`, and every other placement with the eviction that serves it best.

    Args:
        rows: see `plot_savings`.
        requests: dicts that name a row, with `matched_tokens` and `hit_tokens`.
        ours: placement and eviction that are marked.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    shown = _first_cell(rows)
    names = list(dict.fromkeys(row["workload"] for row in shown))
    served: dict[tuple, list[Row]] = {}
    for request in requests:
        served.setdefault(_cell(request), []).append(request)
    figure, grid = _grid(len(names), 3)
    for name, (overlap, positions, shares) in zip(names, grid, strict=True):
        best = _best_of_each([row for row in shown if row["workload"] == name], ours)
        ranked = sorted(best.values(), key=lambda row: (_pair(row) != ours, -row["saved_share"]))
        matched = [one["matched_tokens"] for one in served[_cell(ranked[0])]]
        everywhere = (one["matched_tokens"] for row in ranked for one in served[_cell(row)])
        longest = max(1, *everywhere)
        bins = [longest * number / BINS for number in range(BINS + 1)]
        overlap.hist(matched, bins=bins, color=COLOUR)
        overlap.set_title(f"{name}: tokens alike", fontsize=10)
        for row in ranked[:MOST_LINES]:
            hits = [one["hit_tokens"] for one in served[_cell(row)] if one["hit_tokens"]]
            marked = {"color": OTHER_COLOUR} if _pair(row) == ours else {}
            label = f"{row['placement']}, {row['eviction']}"
            positions.hist(hits, bins=bins, histtype="step", label=label, **marked)
        positions.set_title("positions gone on from", fontsize=10)
        positions.legend(fontsize=6)
        for axes in (overlap, positions):
            axes.set_xlabel("tokens")
            axes.set_ylabel("requests")
        labels = [row["placement"] for row in ranked]
        colours = [OTHER_COLOUR if _pair(row) == ours else COLOUR for row in ranked]
        shares.barh(labels, [efficiency(served[_cell(row)]) for row in ranked], color=colours)
        shares.invert_yaxis()
        shares.tick_params(axis="y", labelsize=7)
        shares.set_xlabel("tokens gone on from, of those alike, %")
        shares.set_title("efficiency", fontsize=10)
    save_figure(figure, path)


def efficiency(served: Sequence[Row]) -> float:
    """Tokens that requests need not compute, of those that begin a kept prefix, in percent."""
    matched = sum(one["matched_tokens"] for one in served)
    return 100 * sum(one["hit_tokens"] for one in served) / matched if matched else 0.0


def _first_cell(rows: Sequence[Row]) -> list[Row]:
    """Those of the first width and budget."""
    first = rows[0]["width"], rows[0]["budget_share"]
    return [row for row in rows if (row["width"], row["budget_share"]) == first]


def _best_of_each(rows: Sequence[Row], ours: tuple[str, str]) -> dict[str, Row]:
    """By placement, the row that saves the most, and for ours the one that is ours."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["saved_share"]):
        if _pair(row) == ours or row["placement"] != ours[0]:
            best[row["placement"]] = row
    return best


def _pair(row: Row) -> tuple[str, str]:
    return row["placement"], row["eviction"]


def _cell(row: Row) -> tuple:
    names = ("workload", "width", "placement", "eviction", "budget_share")
    return tuple(row[name] for name in names)


def _grid(down: int, across: int):
    return load_pyplot().subplots(
        down, across, figsize=(4 * across, 3.4 * down), squeeze=False, layout="constrained"
    )
