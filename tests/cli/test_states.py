"""The states program, and what inspect shows of families that are only known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import main
from cacheshrink_hybrid.families import model_spec
from tests.families.tiny_configs import tiny_model
from tests.texts import TEXTS, word_tokenizer

ROOT = Path(__file__).parents[2]


def filled(folder: Path, case: str) -> Path:
    tiny_model(case).save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text(" ".join(TEXTS), encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", ["granitemoehybrid", "mamba2"])
def test_states(case: str, tmp_path: Path) -> None:
    folder = filled(tmp_path, case)
    text = str(folder / "text.txt")
    output = folder / "out"
    argv = ["states", str(folder / "model"), "--text", text, "--calibration", text]
    argv += ["--max-length", "24", "--batch-size", "4", "--calibration-samples", "3"]
    argv += ["--distances", "--points", "1.2:float16:1", "1.5:float32:1:prune"]
    assert main([*argv, "--output", str(output)]) == 0
    results = json.loads((output / "states.json").read_text())
    assert [r["point"] for r in results["points"]] == [
        "source",
        "1.2:float16:1",
        "1.5:float32:1:prune",
    ]
    for record in results["points"][1:]:
        assert record["ratio"] >= float(record["point"].split(":")[0])
        assert abs(record["change %"]) < 100
    assert results["arguments"]["text"] == ["text.txt"]


def test_drift(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Coding alone: the same ranks with float32 states are what coded ones are held against."""
    folder = filled(tmp_path, "mamba2")
    text, output = folder / "text.txt", folder / "out"
    text.write_text(" ".join(TEXTS * 12), encoding="utf-8")
    argv = ["states", str(folder / "model"), "--text", str(text), "--calibration", str(text)]
    argv += [
        "--max-length",
        "24",
        "--max-chars",
        "5000",
        "--distances",
        "--calibration-samples",
        "3",
    ]
    argv += ["--output", str(output)]
    assert main([*argv, "--points", "2:float32:1", "--drift", "1000"]) == 0
    drift = json.loads((output / "states.json").read_text())["drift"]
    (stretch,) = drift["stretches"]
    assert drift["point"] == "2:float32:1"
    assert stretch["float32"] != stretch["source"]
    assert abs(stretch["change %"]) < 1e-6  # float32 against itself
    capsys.readouterr()
    assert main([*argv, "--points", "2", "--drift", "90000"]) == 2
    assert "needs more" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["granitemoehybrid", "mamba2"])
def test_sweep_over_states(case: str, tmp_path: Path) -> None:
    folder = filled(tmp_path, case)
    text, output = str(folder / "text.txt"), folder / "out"
    argv = ["sweep", str(folder / "model"), "--text", text, "--calibration", text]
    argv += ["--max-length", "24", "--calibration-samples", "3", "--ratios", "2", "--bits", "auto"]
    argv += ["--state-ratios", "1.5", "2", "--output", str(output)]
    assert main(argv) == 0
    points = json.loads((output / "sweep.json").read_text())["points"]
    spec = model_spec(tiny_model(case).config)
    source, *_, first, second = points
    assert source["state_bytes"] == spec.bytes_per_sequence
    assert source["bytes_at_8k"] == spec.kv_bytes(8192) + spec.bytes_per_sequence
    for point, ratio in ((first, 1.5), (second, 2.0)):
        assert source["state_bytes"] / point["state_bytes"] >= ratio
        assert 2 * point["bytes_per_token"] <= source["bytes_per_token"]
        kv = 8192 * point["bytes_per_token"]
        exact = point["bytes_at_8k"] - kv - point["state_bytes"]
        assert point["bytes_at_32k"] - point["bytes_at_8k"] == 3 * kv
        assert (exact > 0) == bool(spec.attention_layers)
    assert len(points) == (5 if spec.attention_layers else 3)
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mamba", "falcon_mamba", "mamba2"])
def test_models_without_attention_run_through_all_programs(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = filled(tmp_path, case)
    text, source, small = (str(folder / name) for name in ("text.txt", "model", "small"))
    argv = ["--state-ratio", "2", "--calibration-dataset", text, "--max-calibration-length", "24"]
    assert main(["convert", source, small, *argv]) == 0
    files = ["--json", str(folder / "p.json"), "--plot", str(folder / "p.png")]
    argv = ["perplexity", source, small, "--text", text, "--max-length", "24"]
    assert main([*argv, *files]) == 0
    before, after = json.loads((folder / "p.json").read_text())["models"]
    assert before["state_ratio"] == 1 and after["state_ratio"] >= 2
    assert after["bytes_at_32k"] == after["state_bytes"] < before["state_bytes"]
    argv = ["memory", source, small, "--lengths", "16", "--json", str(folder / "m.json")]
    assert main(argv) == 0
    for name, measured in json.loads((folder / "m.json").read_text())["models"].items():
        live = measured["per_sequence_length"]["16"]
        assert live["state_bytes"] == live["expected_state_bytes"] == live["total_bytes"]
        due = before if name == source else after
        assert measured["planned"]["bytes_at_8k"] == due["state_bytes"]
    assert main(["recall", small, "--distances", "16", "--exercises", "2"]) == 0
    assert main(["inspect", small]) == 0
    capsys.readouterr()
    assert main(["generate", small, "--prompt", "the", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("the")


def test_the_table_of_reference_models_is_what_inspect_prints(
    capsys: pytest.CaptureFixture,
) -> None:
    paths = sorted(str(path) for path in (ROOT / "eval" / "configs").glob("*.json"))
    assert main(["inspect", *paths, "--kv-ratio", "4", "--state-ratio", "4"]) == 0
    table = capsys.readouterr().out.strip()
    assert len(table.splitlines()) == 2 + len(paths) == 8
    kept = (ROOT / "eval" / "results" / "reference_models.md").read_text(encoding="utf-8")
    assert table in kept


@pytest.mark.parametrize("point", ["fast", "2:int8:x", "2:int8:1:prune:more"])
def test_points_that_are_none(point: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["states", "nowhere", "--points", point]) == 2
    assert f"point {point!r}" in capsys.readouterr().err


LAYOUTS = {
    "recurrent_gemma": ({}, 81920, 552960, "keeps its recurrent state on its modules"),
    "kimi_linear": ({}, 6 * 576 * 2, 21 * (32 * 128 * 128 * 4 + 12288 * 4 * 2), "decays every"),
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
    assert f"model_type={model_type!r} is not converted: " in shown and reason in shown


@pytest.mark.parametrize(
    "path", sorted((ROOT / "eval" / "configs").glob("*.json")), ids=lambda p: p.stem
)
def test_inspect_divides_totals(path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["inspect", str(path), "--kv-ratio", "4", "--state-ratio", "4", "--lengths", "1024"]
    assert main(argv) == 0
    assert "|     4 |\n" in capsys.readouterr().out
