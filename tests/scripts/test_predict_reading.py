"""What is predicted of reading, by hand."""

from __future__ import annotations

import json

import pytest

from scripts.predict_reading import main

SHAPE = ["--layers", "2", "--heads", "4", "--key-heads", "2", "--head-dim", "64"]


def _rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[tuple[str, float], dict]:
    assert main([*SHAPE, "--context", "100", *arguments]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    return {(row["kind"], row["ratio"]): row for row in rows}


def test_bytes_and_products_are_those_of_the_shape(capsys) -> None:
    device = ["--device", "1e9:2e9", "--parameters", "1e6", "--batches", "1", "8"]
    rows = _rows(capsys, *device, "--ratios", "4", "--kept", "0.5")
    source, rotated = rows["FlashAttention", 1.0], rows["rotate_joint", 4.0]
    tokens = 2 * 100
    assert source["bytes"] == tokens * 2 * 2 * 64 * 2
    assert source["products"] == tokens * 4 * 2 * 64
    # 128 of 256 channels: absorbed once per 64 slots, the mean's share, met as keys, mixed. Two
    # passes over rows; 16-bit queries and weights, and what the mean adds, are written and read.
    scratch = 2 * (4 * 128 * 2 / 64 + 4 * 4) + 2 * 4 * 2
    assert rotated["bytes"] == tokens * (2 * 128 + scratch)
    launches = (64 * 128 // 64 + 64, 128, 128)
    assert rotated["products"] == tokens * 4 * sum(launches) and rotated["launches"] == 3
    assert rotated["seconds"] == pytest.approx(2 * rotated["products"] / 2e9)
    assert rotated["waits_for"] == "products" and source["waits_for"] == "bytes"
    assert rotated["speedup"] == pytest.approx(source["seconds"] / rotated["seconds"])
    for row in (source, rotated):
        assert [step["batch"] for step in row["steps"]] == [1, 8]
        assert row["steps"][1]["seconds"] == pytest.approx(2e-3 + 8 * row["seconds"])
    step, due = rotated["steps"][1], source["steps"][1]
    assert step["speedup"] == pytest.approx(due["seconds"] / step["seconds"])


def test_shares_go_with_ratios(capsys) -> None:
    assert main(["--ratios", "4", "8", "--kept", "0.5"]) == 2
    assert "give a share for each ratio" in capsys.readouterr().err
