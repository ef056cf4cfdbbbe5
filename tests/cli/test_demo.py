"""The program `demo`, on less text than it reads by default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import demo, main


@pytest.mark.slow
def test_demo_converts_measures_and_loads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SHORT", demo.Study(stride=15, num_exercises=1))
    monkeypatch.setattr(demo, "DISTANCES", (64,))
    monkeypatch.setattr(demo, "NUM_CALIBRATION_SAMPLES", 8)
    assert main(["demo", "--ratios", "4", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.index("source: 768 KV bytes per token") < out.index("4x: 192 KV bytes per token")
    results = json.loads((tmp_path / "results.json").read_text())
    source, converted = results["models"]
    assert results["reload_is_bit_equal"] and not results["full"]
    live = [model["live KV bytes, 1024 tokens"] for model in (source, converted)]
    assert 3 < live[0] / live[1] < 4  # some tokens are exact as well
    assert converted["perplexity"] == pytest.approx(source["perplexity"], rel=0.02)
    assert "48213" in results["samples"][0].rpartition("kmfp: ")[2]
    assert (tmp_path / "tradeoff.png").exists() and (tmp_path / "model" / "config.json").exists()
