"""The program `finetune`: flags, YAML, outputs, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cacheshrink_hybrid.checkpoint.load import load_mla_model
from cacheshrink_hybrid.cli import main
from cacheshrink_hybrid.cli.parsers.finetune import faults, parse, parser
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.model.attached_plan import plan_of

FAST = ["--max-steps", "2", "--batch-size", "2", "--max-length", "48", "--logging-steps", "1"]
PLAIN = ["--metric", "activation", "--cache-bits", "16", "--num-calibration-samples", "4"]
"""Of conversions, where it does not matter how good they are: few forward passes."""


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    lines = [f"Return the number {i} of items in the list, or None.\n" * 3 for i in range(20)]
    path.write_text("\n<|endoftext|>\n".join(lines))
    return path


def arguments_of(argv: list[str]):
    return parse(parser(), argv)


def finetune(*arguments: object) -> int:
    return main(["finetune", *map(str, arguments)])


@pytest.mark.slow
def test_from_source_to_checkpoint(tmp_path: Path, stories: Path, capsys) -> None:
    """A source model is converted and trained; what comes out loads, and can be trained on."""
    output = tmp_path / "out"
    config = tmp_path / "config.yaml"
    config.write_text(
        "max-steps: 50\nloss: distillation\ncompression_ratio: 8\nextras: [norms]\n"
        f"data: {stories}\nnum_calibration_samples: 4\nnested_ranks: [1.0, 0.5]\n"
    )
    model = model_path()
    assert finetune(model, "--config", config, "--output", output, *FAST) == 0
    resolved = yaml.safe_load((output / "config.yaml").read_text())
    assert resolved["max_steps"] == 2  # the flag wins
    assert resolved["loss"] == "distillation"
    assert resolved["extras"] == ["norms"]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["steps"] == 2
    assert metrics["perplexity_of"] == "evaluation"
    assert len([r for r in metrics["losses"] if "loss" in r]) == 2
    assert (output / "loss.png").stat().st_size > 1000
    trained, tokenizer = load_mla_model(output / "model")
    assert plan_of(trained).compression_ratio == pytest.approx(8, rel=0.05)
    assert tokenizer is not None
    assert "perplexity" in capsys.readouterr().out
    again = finetune(output / "model", "--data", stories, "--output", tmp_path / "again", *FAST)
    assert again == 0
    resolved = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert resolved["loss"] == "lm"  # the source of a saved model is not at hand


@pytest.mark.slow
def test_resolved_config_is_a_config(tmp_path: Path, stories: Path) -> None:
    first = tmp_path / "first"
    arguments = [model_path(), "--data", stories, "--compression-ratio", 8, *PLAIN]
    assert finetune(*arguments, "--output", first, *FAST) == 0
    second = tmp_path / "second"
    config = first / "config.yaml"
    assert yaml.safe_load(config.read_text())["loss"] == "distillation"
    assert finetune(model_path(), "--config", config, "--output", second) == 0
    losses = [
        [r["loss"] for r in json.loads((d / "metrics.json").read_text())["losses"] if "loss" in r]
        for d in (first, second)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--output", "OUT"], "--data is needed"),
        (["--data", "STORIES"], "--output is needed"),
        (["--data", "STORIES", "--output", "OUT", "--batch-size", "0"], "batch_size=0"),
        (["--data", "FEW", "--output", "OUT"], "too few to hold a tenth out"),
        (["--data", "STORIES", "--output", "FEW"], "is a file; give a directory"),
        (["--data", "STORIES", "--output", "OUT", "--shard-frozen-weights"], "the only one"),
        (["--data", "STORIES", "--output", "OUT", "--config", "BAD"], "unknown settings momentum"),
        (["--data", "STORIES", "--output", "OUT", "--config", "TYPE"], "of the wrong type"),
        (["--data", "STORIES", "--output", "OUT", "--config", "CHOICE"], "loss='mse' is unknown"),
        (["--data", "STORIES", "--output", "OUT", "--config", "NONE"], "cannot be read"),
        (
            ["--data", "STORIES", "--output", "OUT", "--loss", "distillation", "--teacher", "NONE"],
            "--teacher: ",
        ),
        (["--data", "STORIES", "--output", "OUT", "--resume"], "no checkpoints to --resume from"),
        (["--data", "BLANK", "--output", "OUT"], "blank holds no text"),
        (["--data", "ENDS", "--output", "OUT"], "ends holds no text"),
    ],
    ids=[
        "data",
        "output",
        "batch",
        "few",
        "file",
        "alone",
        "key",
        "type",
        "choice",
        "no file",
        "teacher",
        "resume",
        "blank",
        "ends",
    ],
)
def test_error(arguments, match: str, tmp_path: Path, stories: Path, capsys) -> None:
    paths = {"STORIES": stories, "OUT": tmp_path / "out", "NONE": tmp_path / "none"}
    for name, text in (
        ("FEW", "one text"),
        ("BAD", "momentum: 0.9"),
        ("TYPE", "max_steps: many"),
        ("CHOICE", "loss: mse"),
        ("BLANK", "\n"),
        ("ENDS", "<|endoftext|>\n" * 20),
    ):
        paths[name] = tmp_path / name.lower()
        paths[name].write_text(text)
    status = finetune(model_path(), *[paths.get(argument, argument) for argument in arguments])
    assert status == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_full_disk_is_said_before_anything_is_loaded(
    tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr("cacheshrink_hybrid.writing.shutil.disk_usage", lambda _: usage)
    output = tmp_path / "out"
    assert finetune(model_path(), "--data", stories, "--output", output, *FAST) == 2
    assert "MiB free, and about" in capsys.readouterr().err
    assert not output.exists()


def test_earlier_run_is_not_written_over(tmp_path: Path, stories: Path, capsys) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "metrics.json").write_text("{}")
    arguments = [model_path(), "--data", stories, "--output", output]
    assert finetune(*arguments) == 2
    assert "holds what an earlier run left (metrics.json)" in capsys.readouterr().err
    assert (output / "metrics.json").read_text() == "{}"
    assert list(output.iterdir()) == [output / "metrics.json"]
    given = arguments_of([*map(str, arguments), "--overwrite"])
    assert not list(faults(given))


def test_data_of_the_command_line_wins(tmp_path: Path, stories: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: [python-docs]\nmax_steps: 7\n")
    given = arguments_of(["model", "--config", str(config), "--data", str(stories)])
    assert (given.data, given.max_steps) == ([str(stories)], 7)
    assert arguments_of(["model", "--config", str(config)]).data == ["python-docs"]


@pytest.mark.slow
def test_worse_than_before_is_said(tmp_path: Path, stories: Path, capsys) -> None:
    """And the weights from before training are what is saved."""
    output = tmp_path / "out"
    harm = ["--learning-rate-scale", 300, "--warmup-steps", 0, "--loss", "lm", *PLAIN]
    assert finetune(model_path(), "--data", stories, "--output", output, *FAST, *harm) == 0
    captured = capsys.readouterr()
    assert "warning: training ended at perplexity" in captured.err
    assert "from before training are kept: it only got worse" in captured.err
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["kept_step"] == 0
    assert metrics["perplexity_last"] > metrics["perplexity_after"] == metrics["perplexity_before"]


def test_unknown_flag(capsys) -> None:
    with pytest.raises(SystemExit):
        finetune(model_path(), "--momentum", "0.9")
    assert "--momentum" in capsys.readouterr().err
