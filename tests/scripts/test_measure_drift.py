"""Calibrated on one text and read on another: paired with the source, window by window."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.errors import ConfigError
from scripts import measure_drift
from scripts.measure_drift import growth


@pytest.fixture
def kinds(tmp_path: Path) -> list[str]:
    words = {"sums": "one and two are three, ", "names": "Anna met Otto and Hannah. "}
    for name, line in words.items():
        text = "<|endoftext|>".join(f"{i} {line * (12 + i)}" for i in range(12))
        (tmp_path / f"{name}.txt").write_text(text)
    return [f"{name}={tmp_path / name}.txt" for name in words]


def test_every_kind_is_read_by_every_setting(kinds: list[str], tmp_path: Path, capsys) -> None:
    asked = [str(model_path()), "--kinds", *kinds, "--calibrated-on", "sums", "--ratios", "16"]
    asked += ["--samples", "3", "--max-length", "48", "--threads", "1"]
    asked += ["--settings", "default", "drawn labels", "--json", str(tmp_path / "found.json")]
    assert measure_drift.main(asked) == 0
    records = json.loads((tmp_path / "found.json").read_text())["records"]
    assert [(record["setting"], record["read"]) for record in records] == [
        (setting, read) for setting in ("default", "drawn labels") for read in ("sums", "names")
    ]
    assert all(record["standard_error"] > 0 for record in records)
    text, drawn = records[0]["perplexity"], records[2]["perplexity"]
    assert text != drawn, "labels that the model draws give another metric than the text's"
    assert "drawn labels" in capsys.readouterr().out


def test_growth_is_paired_by_windows() -> None:
    base = [[1.0, 3.0], [2.0, 2.0]]
    found = growth(base, [[1.1, 3.1], [2.3, 2.3]])
    assert found["perplexity"] == pytest.approx(math.exp(2.2))
    assert found["increase_percent"] == pytest.approx(100 * (math.exp(0.2) - 1))
    assert found["standard_error"] == pytest.approx(100 * math.exp(0.2) * 0.1)
    assert growth(base[:1], base[:1])["standard_error"] is None


def test_a_kind_that_is_not_there_is_refused(kinds: list[str]) -> None:
    with pytest.raises(ConfigError, match="--calibrated-on names letters; the kinds are names"):
        measure_drift.main([str(model_path()), "--kinds", *kinds, "--calibrated-on", "letters"])
