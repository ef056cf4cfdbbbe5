"""Pictures that programs leave behind; all of them take matplotlib, and raise `OutputError` where
they cannot be written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..writing import replaced
from .report import size_key

SIZE_LABELS = {
    "bytes_per_token": "KV cache, bytes per token at 16 bits",
    "bytes_at_8k": "keys, values and states of 8k tokens, bytes",
}
FLOOR_PERCENT = 1e-3
"""A logarithmic axis has no zero; below a thousandth of a percent is noise anyway."""
LEAST_SPAN = 0.05
"""Share of the perplexity that its axis spans at least, so that noise looks like no cliff."""
TICK_SHARE = 0.08
"""Share of the axis between two labelled ticks, at least."""
LINE_POINTS = 11
"""Height of a line of labels."""
FEW_POINTS = 30
"""Points that are marked one by one; a line through one point alone shows nothing."""
LABEL_CHARACTERS = 14
"""Of a name below a group of bars, in a line."""
COLOUR, OTHER_COLOUR = "#3465a4", "#cc0000"


def short_name(model: str) -> str:
    """A model as a title has it: the end of its path, or two parts of it where one says little."""
    parts = Path(model).parts
    return "/".join(parts[-2:]) if parts[-1:] in (("model",), ("models",)) else Path(model).name


def plot_tradeoff(
    path: Path,
    records: Sequence[dict[str, Any]],
    title: str,
    *,
    joined: bool,
    left_out: Sequence[str] = (),
) -> None:
    """Perplexity against cache bytes, a labelled point per record.

    Args:
        records: dicts with `model`, `byte_columns` and `perplexity`.
        joined: whether they are versions of one model, which a line may run through.
        left_out: models that do not compare with these, which the picture names.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    size = size_key(records)
    figure, axes = _axes(records, size, title)
    points = sorted((record[size], record["perplexity"]) for record in records)
    axes.plot(*zip(*points, strict=True), "o-" if joined else "o", color=COLOUR)
    middle = math.sqrt(points[0][0] * points[-1][0])
    labels = []
    for record in records:
        left = record[size] > middle  # of its point, so that it stays within the frame
        label = axes.annotate(
            short_name(str(record["model"])),
            (record[size], record["perplexity"]),
            xytext=(-6 if left else 6, 6),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=9,
        )
        labels.append(label)
    lowest, highest = (choose(value for _, value in points) for choose in (min, max))
    span = max(highest - lowest, LEAST_SPAN * lowest)
    room = (span - (highest - lowest)) / 2
    axes.set_ylim(lowest - room - 0.15 * span, highest + room + 0.15 * span)
    spread_labels(axes, labels)
    if left_out:
        axes.text(
            0.01,
            0.01,
            "not shown, of another tokenizer or unknown size: "
            + ", ".join(map(short_name, left_out)),
            transform=axes.transAxes,
            fontsize=8,
            color="grey",
            wrap=True,
        )
    save_figure(figure, path)


def spread_labels(axes, labels: Sequence[Any]) -> None:
    """Move labels up or down by whole lines, the least that keeps them within the frame and off
    each other."""
    axes.figure.canvas.draw()
    frame = axes.get_window_extent()
    placed: list[Any] = []
    for label in labels:
        x, y = label.xyann
        for lines in sorted(range(-len(labels), len(labels) + 1), key=lambda n: (abs(n), -n)):
            label.xyann = (x, y + lines * LINE_POINTS)
            box = label.get_window_extent()
            inside = frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in placed):
                break
        placed.append(box)


def plot_front(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Perplexity over the source against cache bytes: a line per series, and what stands alone as
    labelled points.

    Args:
        records: dicts with `series`, `byte_columns`, `change_percent` and `front`.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    size = size_key(records)
    figure, axes = _axes(records, size, title)

    def place(record: dict[str, Any]) -> tuple[float, float]:
        return record[size], max(record["change_percent"], FLOOR_PERCENT)

    for series in dict.fromkeys(record["series"] for record in records):
        points = sorted(place(record) for record in records if record["series"] == series)
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), "o-", label=series, markersize=4)
            continue
        axes.plot(*points[0], "D", color="black", markersize=4)
        above = points[0][1] > FLOOR_PERCENT
        axes.annotate(
            series,
            points[0],
            xytext=(0, 9 if above else -16),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    front = [place(record) for record in records if record["front"]]
    axes.scatter(
        *zip(*front, strict=True), s=90, facecolors="none", edgecolors="black", label="front"
    )
    axes.set_yscale("log")
    axes.set_ylabel("perplexity over the source's, %")
    axes.axhline(FLOOR_PERCENT, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        f"{FLOOR_PERCENT:g} % or less",
        (0.01, FLOOR_PERCENT),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
        color="grey",
    )
    axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_bars(
    path: Path, groups: dict[str, dict[str, float | None]], title: str, label: str, *, zero: str
) -> None:
    """Bars of `groups[group][series]`, one colour per series; None is marked as not possible.

    Args:
        zero: what a height of 0, which makes no bar, stands for; it is marked so.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, axes = load_pyplot().subplots(figsize=(9, 4.6), layout="constrained")
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(names)
    absent: dict[str, list[float]] = {"does not fit": [], zero: []}
    for number, name in enumerate(names):
        places = [place + (number + 0.5) * width - 0.4 for place in range(len(groups))]
        heights = [group.get(name) for group in groups.values()]
        axes.bar(places, [height or 0.0 for height in heights], width, label=name)
        for x, height in zip(places, heights, strict=True):
            if not height:
                absent["does not fit" if height is None else zero].append(x)
    for marker, (meaning, places) in zip("x_", absent.items(), strict=True):
        if places:
            low = [0.0] * len(places)
            axes.plot(places, low, marker, color="black", clip_on=False, label=meaning)
    axes.set_xticks(range(len(groups)), [_two_lines(group) for group in groups], fontsize=8)
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(fontsize=8, ncols=5, loc="outside lower center")
    save_figure(figure, path)


def _two_lines(name: str) -> str:
    """A long name, broken at the last of its hyphens that leaves the first line short enough."""
    first, hyphen, rest = name[:LABEL_CHARACTERS].rpartition("-")
    if len(name) <= LABEL_CHARACTERS or not hyphen:
        return name.replace("-", "-\n", 1) if len(name) > LABEL_CHARACTERS else name
    return f"{first}-\n{rest}{name[LABEL_CHARACTERS:]}"


def plot_losses(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Training loss by step, and perplexity where it was measured.

    Args:
        records: dicts with `step`, and `loss` or `eval_perplexity`.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, axes = load_pyplot().subplots(figsize=(7, 4.2), layout="constrained")
    points = [(r["step"], r["loss"]) for r in records if "loss" in r]
    if points:
        marker = "o" if len(points) <= FEW_POINTS else ""
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, color=COLOUR)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss", color=COLOUR)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    measured = [(r["step"], r["eval_perplexity"]) for r in records if "eval_perplexity" in r]
    if measured:
        other = axes.twinx()
        other.plot(*zip(*measured, strict=True), "o--", color=OTHER_COLOUR, markersize=4)
        other.set_ylabel("perplexity through the cache", color=OTHER_COLOUR)
    save_figure(figure, path)


def _axes(records: Sequence[dict[str, Any]], size: str, title: str):
    figure, axes = load_pyplot().subplots(figsize=(7, 4.2), layout="constrained")
    axes.set_xscale("log", base=2)
    sizes = spaced([record[size] for record in records])
    axes.set_xticks(sizes, [_bytes(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(SIZE_LABELS[size])
    axes.set_ylabel("perplexity through the cache")
    axes.set_title(title)
    axes.margins(0.12, 0.15)
    axes.grid(alpha=0.3)
    return figure, axes


def spaced(sizes: Sequence[float]) -> list[float]:
    """Those sizes, ascending, whose labels have room beside each other on a logarithmic axis: first
    the ones that most points have."""
    least = TICK_SHARE * math.log2(max(sizes) / min(sizes))
    kept: list[float] = []
    for size in sorted(set(sizes), key=lambda size: (-sizes.count(size), size)):
        if all(abs(math.log2(other / size)) >= least for other in kept):
            kept.append(size)
    return sorted(kept)


def _bytes(size: float) -> str:
    return f"{size:g}" if size < 100_000 else f"{size / 2**20:.3g} Mi"


def load_pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib; install cacheshrink_hybrid[eval]") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure, path: Path) -> None:
    with replaced(path) as draft:
        figure.savefig(draft, dpi=130)
    load_pyplot().close(figure)
