"""Bytes against loss for somebody who has never seen it: a panel where everything is read back, one
where the newest tokens stay exact, and ours as a line through each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacheshrink_hybrid.cli.plots import spread_labels
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.writing import replaced

from ..figures.peers import OURS, SHORT, TUNED

PANELS = {
    "Every token is read back as it is stored": ("read", "first"),
    "The newest tokens stay exact (hollow: without counting their bytes)": ("raw", "w32", "exact"),
}
"""Conventions that compare with each other."""
UNCOUNTED = "raw"
"""The convention whose exact tokens take no bytes."""
FLOOR_PERCENT = 0.01
"""A logarithmic axis has no zero."""
CEILING_PERCENT = 100.0
"""What loses more is of no use, and is marked at the edge."""
SIZES = (1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 24000)
PERCENTS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
OUR_COLOUR = "black"
LEGEND_COLUMNS = 6
MARKERS = "s^vD<>PXph*"
PREFIXES = ("ours ", "turboquant_", "kvquant++_", "kivi_", "quanto_", "hqq_", "llama.cpp ")
SUFFIXES = (" all coded", " read", " raw", " w32")
Record = dict[str, Any]


def plot_front(path: Path, records: Sequence[Record], title: str) -> None:
    """Increase of perplexity against bytes per token at 1k tokens, both logarithmic.

    Args:
        records: measured ones of `compare_peers`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    shown = [record for record in records if record["method"] != record["base"]]
    if not shown:
        return
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(
        1, len(PANELS), figsize=(15, 7.5), sharex=True, sharey=True, layout="constrained"
    )
    peers = [family for family in dict.fromkeys(r["family"] for r in shown) if family != OURS]
    styles = {OURS: {"marker": "o", "color": OUR_COLOUR}} | {
        family: {"marker": MARKERS[i % len(MARKERS)], "color": f"C{i % 10}"}
        for i, family in enumerate(peers)
    }
    for axes, (heading, conventions) in zip(panels, PANELS.items(), strict=True):
        labels: list[Any] = []
        for family, style in styles.items():
            points = [
                r
                for r in shown
                if r["family"] == family and (r["convention"] in conventions or _is_both(r, shown))
            ]
            labels += _draw(axes, points, style)
        _set_axes(axes, [record["bytes_per_token"][SHORT] for record in shown])
        axes.set_title(heading, fontsize=11)
        spread_labels(axes, labels)
    panels[0].set_ylabel("perplexity over the source (lower is better)")
    handles = [
        pyplot.Line2D([], [], linestyle="-" if family == OURS else "", label=family, **style)
        for family, style in styles.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS)
    figure.suptitle(title)
    with replaced(path) as draft:
        figure.savefig(draft, dpi=130)
    pyplot.close(figure)


def _is_both(record: Record, shown: Sequence[Record]) -> bool:
    """Ours of one variant only belongs to both panels: it keeps no more exact than peers do."""
    variants = {other["convention"] for other in shown if other["family"] == OURS}
    return record["family"] == OURS and len(variants) == 1


def _draw(axes, records: Sequence[Record], style: dict[str, str]) -> list[Any]:
    """Points of a family, ours with a line through those that were not trained; returns their
    labels."""
    labels = []
    ours = style["color"] == OUR_COLOUR
    places = sorted((*_place(record), record["method"], record["convention"]) for record in records)
    line = [place for place in places if TUNED not in place[2]]
    if ours and line:
        axes.plot([p[0] for p in line], [p[1] for p in line], color=OUR_COLOUR, linewidth=2)
    for size, loss, name, convention in places:
        filled = style["color"] if convention != UNCOUNTED else "white"
        axes.plot(size, loss, markersize=8 if ours else 6, markerfacecolor=filled, **style)
        labels.append(
            axes.annotate(
                short_label(name),
                (size, loss),
                xytext=(6, 3),
                textcoords="offset points",
                fontsize=9 if ours else 7,
                weight="bold" if ours else "normal",
                color=style["color"],
            )
        )
    return labels


def _set_axes(axes, sizes: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(FLOOR_PERCENT / 1.4, CEILING_PERCENT * 1.4)
    axes.minorticks_off()
    axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    texts = [f"{percent:g} %" for percent in PERCENTS]
    texts[0], texts[-1] = f"≤ {texts[0]}", f"≥ {texts[-1]}"
    axes.set_yticks(PERCENTS, texts)
    axes.set_xlim(min(sizes) / 1.2, max(sizes) * 1.6)
    axes.grid(alpha=0.3)
    axes.set_xlabel("bytes per token of all layers, at 1,024 tokens (further left is smaller)")


def _place(record: Record) -> tuple[float, float]:
    loss = min(max(record["increase_percent"], FLOOR_PERCENT), CEILING_PERCENT)
    return record["bytes_per_token"][SHORT], loss


def short_label(name: str) -> str:
    """A method's name beside its point, without the family and the convention, which are seen."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name.replace(" edges at 16 bits", ", edges 16 bit")


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "the picture needs matplotlib; install cacheshrink_hybrid[eval]"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
