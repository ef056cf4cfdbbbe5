"""The sweep program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import main, sweep
from tests.families.tiny_configs import tiny_model
from tests.texts import TEXTS, word_tokenizer

INTERRUPTED = 130


def test_points_that_were_measured_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the next one is interrupted."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    text, output = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(" ".join(TEXTS), encoding="utf-8")
    convert = sweep.convert_model

    def interrupted(model, config, **statistics):
        if config.compression_ratio == 4.0:
            raise KeyboardInterrupt
        return convert(model, config, **statistics)

    monkeypatch.setattr(sweep, "convert_model", interrupted)
    argv = ["sweep", str(tmp_path / "model"), "--text", str(text), "--calibration", str(text)]
    argv += ["--ratios", "2", "4", "--bits", "16", "--metrics", "activation"]
    argv += ["--max-length", "24", "--calibration-samples", "3", "--output", str(output)]
    assert main(argv) == INTERRUPTED
    points = json.loads((output / "sweep.json").read_text())["points"]
    assert [point["model"] for point in points] == [
        "source",
        "int8 KV",
        "int4 KV",
        "auto 16 bit activation 2x",
    ]
    assert points[0]["ratio"] == 1.0 and points[-1]["ratio"] >= 2.0
    assert (output / "sweep.md").read_text().count("\n") == 2 + len(points)
