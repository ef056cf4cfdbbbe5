"""What is predicted of many devices, by hand."""

from __future__ import annotations

import json

import pytest

from scripts.predict_serving import main

SHAPE = [
    *("--layers", "2", "--heads", "8", "--key-heads", "4", "--head-dim", "64", "--context", "100"),
    *("--parameters", "1e6", "--devices", "4", "--device", "1e9:2e9", "--memory", "4e6"),
    *(
        "--hidden",
        "128",
    ),
    *("--share", "0.5", "--requests", "8"),
]


def _more(ranks: int, encoder: int) -> float:
    """Bytes of encoders, and where keys are rotated of all keys' and values' projections beyond a
    device's share."""
    rotated = encoder == 512 * 256
    return 2 * 2 * (128 * 512 * (1 - 1 / ranks) * rotated + encoder)


def _rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[tuple[int, str], dict]:
    assert main([*SHAPE, *arguments]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    return {(row["ranks"], row["format"]): row for row in rows}


def test_heads_are_split_and_whole_rows_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows(capsys, "--ranks", "4", "2", "--ratios", "4", "--kept", "0.5")
    whole = 4 * 2 * 64 * 2
    for ranks in (4, 2):
        source, ours = rows[ranks, "16 bits"], rows[ranks, "rotate, 4x"]
        assert source["bytes per token and device"] == 2 * whole // ranks
        assert rows[ranks, "fp8"]["bytes per token and device"] == whole // ranks
        assert ours["bytes per token and device"] == 2 * whole // 4
        room = 4e6 * 0.5 - 2e6 / ranks
        assert source["tokens"] == 4 // ranks * int(room / (2 * whole / ranks))
        room -= _more(ranks, encoder=512 * 256)
        assert ours["tokens"] == 4 // ranks * int(room / (2 * whole / 4))


def test_rows_of_groups_are_split_with_their_heads(capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows(capsys, "--ranks", "4", "2", "--ratios", "4", "--kept", "0.5")
    for ranks in (4, 2):
        source, ours = rows[ranks, "16 bits"], rows[ranks, "joint, 4x, split"]
        assert 4 * ours["bytes per token and device"] == source["bytes per token and device"]
        room = 4e6 * 0.5 - 2e6 / ranks - _more(ranks, encoder=128 * 256)
        due = 4 // ranks * int(room / ours["bytes per token and device"])
        assert ours["tokens"] == due > 2 * source["tokens"]
    # One key head on each device: 64 channels rebuild its keys and give the values of two queries.
    weights, tokens = (2e6 / 4 + _more(4, encoder=128 * 256)) / 1e9, 8 * 2 * 100
    operations = 2 * 64 * 64 + 2 * 2 * 64 + 2 * 2 * 64
    found = rows[4, "joint, 4x, split"]["step seconds"]
    assert found == pytest.approx(weights + tokens * operations / 2e9)


def test_a_step_reads_weights_and_contexts(capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows(capsys, "--ranks", "2", "--ratios", "4", "--kept", "0.5")
    weights, tokens = 2e6 / 2 / 1e9, 8 / 2 * 2 * 100
    source, rotated = rows[2, "16 bits"], rows[2, "rotate, 4x"]
    by_token = max(2 * 2 * 64 * 2 / 1e9, 2 * 4 * 2 * 64 / 2e9)
    assert source["step seconds"] == pytest.approx(weights + tokens * by_token)
    weights += _more(2, encoder=512 * 256) / 1e9
    # A device absorbs and mixes for its four query heads, over 128 channels of keys and of values.
    operations = 2 * 4 * (64 * 128 // 64 + 64), 2 * 4 * 128, 2 * 4 * 128
    assert rotated["step seconds"] == pytest.approx(weights + tokens * sum(operations) / 2e9)


def test_what_does_not_fit_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHAPE, "--ranks", "4", "--requests", "100000"]) == 0
    assert "do not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ratios", "4", "8", "--kept", "0.5"], "give a share for each ratio"),
        (["--ranks", "3"], "--ranks 3 does not divide 4 devices"),
        (["--ranks", "1"], "--ranks 1 leaves no cache"),
    ],
)
def test_wrong_settings_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHAPE, *arguments]) == 2
    assert words in capsys.readouterr().err
