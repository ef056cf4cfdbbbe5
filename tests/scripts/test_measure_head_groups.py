"""What groups of heads lose: more than one latent for all, at no more bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cacheshrink_hybrid.demo import model_path
from scripts import measure_head_groups

WORDS = "one and two are three, three and four are seven. "


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(f"{i} {WORDS * 4}{i}" for i in range(12)))
    sizes = ["--calibration-samples", "12", "--max-length", "64", "--threads", "1"]
    return [str(model_path()), "--text", str(text), *sizes, "--json", str(tmp_path / "found.json")]


def test_groups_lose_more_at_equal_bytes(asked: list[str], capsys) -> None:
    assert measure_head_groups.main([*asked, "--groups", "1", "3", "--ratios", "8"]) == 0
    shared, grouped = json.loads(Path(asked[-1]).read_text())["records"]
    assert (shared["groups"], grouped["groups"]) == (1, 3)
    assert 0 < grouped["bytes per token"] <= 96 and 0 < shared["bytes per token"] <= 96
    assert grouped["held-out loss"] > shared["held-out loss"] > 0
    told = capsys.readouterr().out
    assert "| 1 group of heads | 3 groups |" in told
    assert f"| 8x | {shared['held-out loss']:.4f} | {grouped['held-out loss']:.4f} |" in told


def test_heads_that_cannot_be_divided_are_refused(asked: list[str], capsys) -> None:
    assert measure_head_groups.main([*asked, "--groups", "2"]) == 2
    assert "error: head_groups=2 does not divide the 3 key heads" in capsys.readouterr().err
