"""Plots hold what they should: no label outside, no tick on another, no line through strangers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import plots
from cacheshrink_hybrid.cli.plots import (
    LEAST_SPAN,
    plot_bars,
    plot_front,
    plot_losses,
    plot_tradeoff,
    short_name,
    spaced,
)


def record(model: str, size: int, perplexity: float, **more) -> dict:
    return {"model": model, "bytes_per_token": size, "state_bytes": 0, "perplexity": perplexity} | (
        {"change_percent": 100 * (perplexity / 5.0 - 1), "front": False} | more
    )


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """Figures as they were saved, drawn."""
    kept = []

    def keep(figure, path: Path) -> None:
        figure.canvas.draw()
        kept.append(figure)

    monkeypatch.setattr(plots, "save_figure", keep)
    return kept


def texts_within(figure) -> bool:
    frame = figure.axes[0].get_window_extent()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    return all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_labels_stay_within_the_frame(figures: list) -> None:
    records = [record("models/a-model-of-a-long-name", 640, 5.0), record("another-long-name", 1, 5)]
    plot_tradeoff(Path("p.png"), records, "title", joined=False)
    assert texts_within(figures[0])


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("size", [64, 640])
def test_labels_of_points_in_one_place_keep_apart(figures: list, count: int, size: int) -> None:
    records = [record(f"a-model-number-{i}", size, 5.0 + 1e-4 * i) for i in range(count)]
    plot_tradeoff(Path("p.png"), [*records, record("far", 1, 9.0)], "title", joined=False)
    boxes = [text.get_window_extent() for text in figures[0].axes[0].texts]
    assert len(boxes) == count + 1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert texts_within(figures[0])


def test_what_does_not_compare_is_named_and_not_drawn(figures: list) -> None:
    plot_tradeoff(
        Path("p.png"), [record("a", 640, 5.0)], "title", joined=False, left_out=["org/stranger"]
    )
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.texts] == [
        "a",
        "not shown, of another tokenizer or unknown size: stranger",
    ]
    assert len(axes.lines[0].get_xdata()) == 1


@pytest.mark.parametrize("joined", [True, False])
def test_line_only_through_versions_of_one_model(figures: list, joined: bool) -> None:
    records = [record("a", 640, 5.0), record("b", 160, 5.01)]
    plot_tradeoff(Path("p.png"), records, "title", joined=joined)
    (line,) = figures[0].axes[0].lines
    assert line.get_linestyle() == ("-" if joined else "None")
    assert line.get_marker() == "o"


@pytest.mark.parametrize("high", [5.0, 5.01, 20.0])
def test_small_differences_look_small(figures: list, high: float) -> None:
    plot_tradeoff(
        Path("p.png"), [record("a", 640, 5.0), record("b", 160, high)], "title", joined=True
    )
    low, top = figures[0].axes[0].get_ylim()
    assert low < 5.0 and high < top
    assert top - low >= LEAST_SPAN * 5.0


def test_ticks_keep_apart() -> None:
    assert spaced([48, 96, 192, 216, 384, 408, 768, 48, 96, 192, 384]) == [48, 96, 192, 384, 768]
    assert spaced([7]) == [7]
    assert spaced([640, 640]) == [640]


def test_front_names_what_stands_alone(figures: list) -> None:
    records = [
        record("source", 640, 5.0, series="source", front=True),
        record("a 2x", 320, 5.1, series="a"),
        record("a 4x", 160, 5.2, series="a", front=True),
    ]
    plot_front(Path("p.png"), records, "title")
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.texts] == ["source", "0.001 % or less"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "front"]


def test_what_does_not_fit_is_marked(figures: list) -> None:
    groups = {"Some-Model-Of-A-Long-Name": {"frames": 3.0, "lcm": None}, "B": {"frames": 0.0}}
    plot_bars(
        Path("p.png"), {**groups, "B": {"frames": 0.0, "lcm": 1.0}}, "title", "label", zero="none"
    )
    (axes,) = figures[0].axes
    crosses, empty = axes.lines
    assert (len(empty.get_xdata()), empty.get_label()) == (1, "none")
    assert len(crosses.get_xdata()) == 1
    assert crosses.get_label() == "does not fit"
    assert axes.get_xticklabels()[0].get_text() == "Some-Model-Of-\nA-Long-Name"


@pytest.mark.parametrize("count", [1, 5, 100])
def test_few_losses_are_marked(figures: list, count: int) -> None:
    records = [{"step": 10 * i, "loss": 1.0} for i in range(count)]
    plot_losses(Path("p.png"), records, "title")
    assert figures[0].axes[0].lines[0].get_marker() == ("o" if count < 30 else "")


def test_nothing_was_logged(tmp_path: Path) -> None:
    plot_losses(tmp_path / "loss.png", [{"step": 0, "eval_perplexity": 3.0}], "title")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_short_names() -> None:
    assert short_name("/a/b/stories260K") == "stories260K"
    assert short_name("cacheshrink_hybrid/demo/model") == "demo/model"
    assert short_name("org/name") == "name"
