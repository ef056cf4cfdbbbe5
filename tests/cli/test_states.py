"""The states program, and what inspect shows of families that are only known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import main
from tests.families.tiny_configs import tiny_model
from tests.texts import TEXTS, word_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("granitemoehybrid").save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(TEXTS), encoding="utf-8")
    return tmp_path


def test_states(folder: Path) -> None:
    text = str(folder / "text.txt")
    output = folder / "out"
    argv = ["states", str(folder / "model"), "--text", text, "--calibration", text]
    argv += ["--max-length", "24", "--batch-size", "4", "--calibration-samples", "3"]
    argv += ["--distances", "--points", "1.2:float16:1", "1.5:float32:1:prune", "99"]
    assert main([*argv, "--output", str(output)]) == 0
    results = json.loads((output / "states.json").read_text())
    assert [r["point"] for r in results["points"]] == [
        "source",
        "1.2:float16:1",
        "1.5:float32:1:prune",
    ]  # a ratio that cannot be met is left out
    for record in results["points"][1:]:
        assert record["ratio"] >= float(record["point"].split(":")[0])
        assert abs(record["change %"]) < 100
    assert results["arguments"]["text"] == ["text.txt"]


@pytest.mark.parametrize("point", ["fast", "2:int8:x", "2:int8:1:prune:more"])
def test_points_that_are_none(point: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["states", "nowhere", "--points", point]) == 2
    assert f"point {point!r}" in capsys.readouterr().err


LAYOUTS = {
    "recurrent_gemma": ({}, 81920, 552960, "keeps its recurrent state on its modules"),
    "samba": (
        {
            "hidden_size": 2304,
            "state_size": 16,
            "num_hidden_layers": 18,
            "conv_kernel": 4,
            "expand": 2,
            "attn": {"layers": [1, 3, 5, 7, 9], "num_heads": 18, "window_size": 2048},
        },
        5 * 4 * 2304,
        13 * (4608 * 16 * 4 + 4608 * 4 * 2),
        "no model class",
    ),
    "hymba": (
        {
            "hidden_size": 1600,
            "num_hidden_layers": 4,
            "num_attention_heads": 25,
            "num_key_value_heads": 5,
            "mamba_expand": 2,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "attn_window_size": 1024,
            "global_attn_idx": [0],
            "kv_reuse_group": [[1, 2]],
        },
        3 * 4 * 320,
        4 * (3200 * 16 * 4 + 3200 * 4 * 2),
        "a cache class of its own",
    ),
}


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_inspect_of_families_that_are_only_known(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    values, kv, state, reason = LAYOUTS[model_type]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": model_type, **values}), encoding="utf-8")
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{kv} KV bytes per token at 16 bits, {state} bytes of state per sequence" in shown
    assert "not converted: " in shown and reason in shown


@pytest.mark.parametrize("path", sorted(Path("eval/configs").glob("*.json")), ids=lambda p: p.stem)
def test_inspect_divides_totals(path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["inspect", str(path), "--kv-ratio", "4", "--state-ratio", "4", "--lengths", "1024"]
    assert main(argv) == 0
    assert "|     4 |\n" in capsys.readouterr().out
