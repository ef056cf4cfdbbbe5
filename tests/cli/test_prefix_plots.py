"""What pictures of prefix reuse show."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from cacheshrink_hybrid.cli import prefix_plots
from cacheshrink_hybrid.cli.prefix_plots import efficiency, plot_requests

OURS = ("learned", "learned")


def request(placement: str, matched: int, hit: int, eviction: str = "lru") -> dict:
    return {
        "workload": "mixed",
        "width": "bf16 states",
        "placement": placement,
        "eviction": eviction,
        "budget_share": 0.1,
        "matched_tokens": matched,
        "hit_tokens": hit,
    }


def row(placement: str, eviction: str, share: float) -> dict:
    return {**request(placement, 0, 0, eviction), "saved_share": share}


def test_efficiency() -> None:
    assert efficiency([request("grid", 100, 50), request("grid", 60, 30)]) == 50.0
    assert efficiency([request("grid", 0, 0)]) == 0.0


def test_three_pictures_of_each_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[matplotlib.figure.Figure] = []
    monkeypatch.setattr(prefix_plots, "save_figure", lambda figure, path: figures.append(figure))
    rows = [row("learned", "learned", 0.3), row("learned", "lru", 0.9), row("dp_3", "lru", 0.4)]
    rows.append({**row("learned", "learned", 0.5), "budget_share": 0.2})
    requests = [
        request("learned", 300, 240, "learned"),
        request("learned", 40, 0, "learned"),
        request("learned", 300, 300, "lru"),
        request("dp_3", 300, 150),
    ]
    plot_requests(tmp_path / "x.png", rows, requests, OURS)
    overlap, positions, shares = figures[0].axes
    heights = [patch.get_height() for patch in overlap.patches]
    assert (len(heights), sum(heights), heights[4], heights[31]) == (32, 2, 1, 1)
    labels = [text.get_text() for text in positions.get_legend().get_texts()]
    assert labels == ["learned, learned", "dp_3, lru"]
    assert [bar.get_width() for bar in shares.patches] == [pytest.approx(100 * 240 / 340), 50.0]
