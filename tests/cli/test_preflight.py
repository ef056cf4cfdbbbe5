"""What is wrong with arguments is said before any work, all of it, in a line each."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid.checkpoint.files import MODEL_TYPE, PLAN_NAME
from cacheshrink_hybrid.cli import main, overwriting, preflight
from cacheshrink_hybrid.cli.preflight import (
    DataSet,
    Device,
    Memory,
    Model,
    NamedOrFile,
    Number,
    OutputDirectory,
    OutputFile,
    Plot,
    TextFile,
    ratio,
    seed,
    too_little_space,
    whole,
)
from cacheshrink_hybrid.demo import model_path

MODEL = str(model_path())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of everything that may be named by mistake, and no way to the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("text", encoding="utf-8")
    Path("blank").write_text("\n \n")
    Path("binary").write_bytes(b"\xff\xfe\x00")
    for name in ("empty", "other", "ours", "cut", "list", "files", "over", "words", "runs"):
        Path(name).mkdir()
    Path("runs/config.yaml").write_text("batch_size: 2\n")
    for name in ("other", "over"):
        shutil.copy(model_path() / "config.json", f"{name}/config.json")
    Path("over", PLAN_NAME).write_text("{}")
    Path("words/tokenizer.json").write_text("{}")
    Path("ours/config.json").write_text(json.dumps({"model_type": MODEL_TYPE}))
    Path("ours/tokenizer.json").write_text("{}")
    Path("ours", PLAN_NAME).write_text("{}")
    Path("cut/config.json").write_text('{"model_type": ')
    Path("list/config.json").write_text("[1]")
    Path("files/notes.txt").write_text("mine")
    Path("some.gguf").touch()
    return tmp_path


FAULTS = {
    "no number": (Number(int, 1), 0, "0 must be at least 1"),
    "not finite": (ratio(), float("nan"), "nan must be at least 1"),
    "infinite": (ratio(), float("inf"), "inf must be at least 1"),
    "device": (Device(), "gpu", "gpu is no torch device; give cpu"),
    "device type": (Device(), "meta", "torch finds no meta device here"),
    "model": (Model(), "no/such/model", "no/such/model does not exist"),
    "model by name": (Model(), "nobody/nothing", "not in the cache of the Hub.*HF_HUB_OFFLINE"),
    "model file": (Model(), "file", "file is a file; give the directory"),
    "missing gguf": (Model(), "no.gguf", "no.gguf does not exist"),
    "no config": (Model(), "empty", "empty holds no config.json"),
    "cut config": (Model(), "cut", "config.json cannot be read as JSON"),
    "config of nothing": (Model(), "list", "holds no settings of a model"),
    "config file": (Model(config_file=True), "file", "file cannot be read as JSON"),
    "converted": (Model(source=True), "ours", "ours is converted already; give the source"),
    "text": (TextFile(), Path("none"), "none is no file"),
    "text folder": (TextFile(), Path("empty"), "empty is no file"),
    "no text": (TextFile(), Path("blank"), "blank holds no text"),
    "data without text": (DataSet(), "blank", "blank holds no text"),
    "too large": (whole(), 2**63, "9223372036854775808 must be at most 9223372036854775807"),
    "beyond a line": (whole(), 10**5000, r"2\^16609... must be at most"),
    "seed": (seed(), 2**64, "18446744073709551616 must be at most 18446744073709551615"),
    "negative seed": (seed(), -1, "-1 must be at least 0"),
    "memory": (Memory(), "lots", "'lots' is no amount of memory"),
    "no memory": (Memory(), "0", "must be positive"),
    "share": (Memory(), "150%", "at most 100% of free memory"),
    "text bytes": (TextFile(), Path("binary"), r"binary is no text in UTF-8 \(byte 0\)"),
    "data": (DataSet(), "none.txt", "none.txt does not exist"),
    "data path": (DataSet(), "/no/such/data", "/no/such/data does not exist"),
    "data folder": (DataSet(), "empty", "empty is a directory"),
    "data bytes": (DataSet(), "binary", "binary is no text in UTF-8"),
    "data offline": (DataSet(), "wikitext", "HF_HUB_OFFLINE is set.*python-docs"),
    "json folder": (OutputFile(), Path("empty"), "empty is a directory"),
    "json below a file": (OutputFile(), Path("file/a.json"), "file is a file; give a directory"),
    "plot": (Plot(), Path("p.xyz"), "p.xyz must end in one of .png"),
    "plot without": (Plot(), Path("p"), "p must end in one of .png"),
    "output": (OutputDirectory(), Path("file"), "file is a file; give a directory"),
    "other model": (OutputDirectory(model=True), Path("other"), r"another model \(config.json\)"),
    "other model over ours": (OutputDirectory(model=True), Path("over"), r"model \(config.json\)"),
    "tokenizer": (OutputDirectory(model=True), Path("words"), r"another model \(tokenizer.json\)"),
}
FINE = {
    "number": (whole(), 1),
    "seed": (seed(), 2**64 - 1),
    "memory": (Memory(), "2GiB"),
    "share of memory": (Memory(), "60%"),
    "cpu": (Device(), "cpu"),
    "model": (Model(source=True), "other"),
    "gguf": (Model(), "some.gguf"),
    "config file": (Model(config_file=True), "other/config.json"),
    "text": (TextFile(), Path("file")),
    "python-docs": (DataSet(), "python-docs"),
    "data": (DataSet(), "file"),
    "json": (OutputFile(), Path("new/folder/a.json")),
    "plot": (Plot(), Path("new/p.PNG")),
    "new": (OutputDirectory(model=True), Path("new/folder")),
    "our model": (OutputDirectory(model=True), Path("ours")),
    "the user's files": (OutputDirectory(model=True), Path("files")),
    "results beside a model": (OutputDirectory(), Path("other")),
}


@pytest.mark.parametrize(("kind", "value", "match"), FAULTS.values(), ids=FAULTS)
def test_fault(kind, value, match: str, place: Path) -> None:
    before = sorted(place.rglob("*"))
    faults = list(kind.faults(value))
    assert len(faults) == 1
    assert "\n" not in faults[0]
    assert re.search(match, faults[0]), faults[0]
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(("kind", "value"), FINE.values(), ids=FINE)
def test_no_fault(kind, value, place: Path) -> None:
    before = sorted(place.rglob("*"))
    assert not list(kind.faults(value))
    assert sorted(place.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written_to(place: Path) -> None:
    Path("empty").chmod(0o500)
    assert "cannot be written to" in next(iter(OutputDirectory().faults(Path("empty/new"))))


def test_file_system_that_takes_no_files() -> None:
    if not Path("/sys/kernel").is_dir():
        pytest.skip("no sysfs here")
    (fault,) = OutputDirectory().faults(Path("/sys/kernel/new"))
    assert fault.startswith("/sys/kernel/new cannot be written to (")


def test_too_little_space(place: Path) -> None:
    (fault,) = too_little_space(place / "new", 2**60)
    assert "MiB free, and about 1,099,511,627,777.0 MiB are needed" in fault
    assert not list(too_little_space(place / "new", 1000))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_device_that_is_not_here() -> None:
    (fault,) = Device().faults("cuda")
    assert fault == "torch finds no cuda device here, none but the CPU; give one of these"


def test_plots_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    for kind, value in ((Plot(), Path("p.png")), (OutputDirectory(plots=True), Path("new"))):
        assert "matplotlib" in " ".join(kind.faults(value))


def test_number_that_is_none() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'many' is no whole number"):
        whole()("many")


@pytest.mark.parametrize("free", [0, 2**20, 2**20 + 40_000, 2**21 - 1])
def test_space_that_is_short_by_little(
    place: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("cacheshrink_hybrid.writing.shutil.disk_usage", lambda _: usage)
    (fault,) = too_little_space(place / "new", 2**20)
    has, takes = map(float, re.findall(r"([\d.]+) MiB", fault))
    assert has < takes


def test_one_cause_is_said_once(place: Path, capsys: pytest.CaptureFixture) -> None:
    if not Path("/sys/kernel").is_dir():
        pytest.skip("no sysfs here")
    assert main(["convert", MODEL, "/sys/kernel/out"]) == 2
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.parametrize(
    "kind", [Model(), TextFile(), NamedOrFile(()), DataSet(), OutputFile(), OutputDirectory()]
)
def test_home_is_expanded(kind, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    assert str(kind("~/file")) == str(place / "file")
    assert str(kind("~nobody-of-this-name/a")) == "~nobody-of-this-name/a"


def test_two_outputs_in_one_file(place: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=OutputFile())
    parser.add_argument("--plot", type=Plot())
    given = parser.parse_args(["--json", "a.png", "--plot", "empty/../a.png"])
    assert not list(preflight.faults(parser, given))
    (fault,) = overwriting.faults(parser, given)
    assert fault == "--plot: empty/../a.png is written by --json already; give another file"


REFUSED = {
    "convert": (
        [
            "NONE",
            "file",
            "--device",
            "gpu",
            "--calibration-dataset",
            "binary",
            "--compression-ratio",
            "0.3",
        ],
        ["MODEL: ", "--device: ", "OUTPUT: ", "--calibration-dataset: ", "compression_ratio=0.3"],
    ),
    "export": ([MODEL, "file", "--pad-to", "1", "64"], ["OUTPUT: ", "--pad-to: ", "MODEL: "]),
    "perplexity": (
        [
            "NONE",
            "empty",
            "--text",
            "none",
            "--json",
            "empty",
            "--plot",
            "p.xyz",
            "--batch-size",
            "0",
            "--stride",
            "900",
        ],
        ["MODEL: ", "MODEL: ", "--text: ", "--batch-size: ", "--json: ", "--plot: ", "--stride "],
    ),
    "recall": ([MODEL, "--distances", "0", "--exercises", "0"], ["--distances: ", "--exercises: "]),
    "memory": ([MODEL, "--lengths", "0", "--json", "empty"], ["--lengths: ", "--json: "]),
    "sweep": ([MODEL, "--ratios", "nan", "--bits", "3"], ["--ratios: ", "--bits 3"]),
    "states": (
        [MODEL, "--points", "4:x", "2:int8:a", "--drift", "9"],
        ["--points 4:x", "--points 2:int8:a", "--drift 9"],
    ),
    "allocator": (["--traces", "none", "--requests", "0"], ["--traces: ", "--requests: "]),
    "prefix": (
        ["--trace", "none", "--placements", "best", "--budgets", "0", "--json", "empty"],
        ["--trace: ", "--budgets: ", "--json: ", "--placements best: "],
    ),
    "throughput": (["NONE", "--trace", "none"], ["MODEL: ", "--trace: "]),
    "generate": (["NONE", "--prompt", "a", "--temperature", "-1"], ["MODEL: ", "--temperature: "]),
    "demo": (["--output", "file", "--ratios", "0.5"], ["--output: ", "--ratios: "]),
    "inspect": (["NONE", "list/config.json", "--lengths", "0"], ["MODEL: "] * 2 + ["--lengths: "]),
    "sweep together": (
        ["sweep", MODEL, "--methods", "xkv", "joint", "--bits", "4", "16"],
        ["--methods xkv --metrics fisher --bits 4: "],
    ),
    "converted teacher": (
        ["finetune", MODEL, "--data", "file", "--output", "new", "--teacher", "ours"],
        ["--teacher: ours is converted already"],
    ),
    "conversion before training": (
        ["finetune", MODEL, "--data", "file", "--output", "new", "--max-calibration-length", "1"],
        ["max_calibration_length=1 must be a whole number >= 2"],
    ),
    "config in its place": (
        ["finetune", MODEL, "--data", "file", "--output", "runs", "--config", "runs/config.yaml"],
        ["--config: runs/config.yaml is where the settings"],
    ),
    "shipped and given": (
        ["throughput", MODEL, "--compression-ratio", "8"],
        ["--compression-ratio 8 is of the shipped model"],
    ),
    "finetune": (
        [MODEL, "--output", "file", "--data", "binary", "--batch-size", "0", "--teacher", "NONE"],
        ["--output: ", "--data: ", "--teacher: ", "batch_size=0"],
    ),
}


@pytest.mark.parametrize("program", REFUSED)
def test_all_faults_at_once(program: str, place: Path, capsys: pytest.CaptureFixture) -> None:
    """Nothing is loaded, nothing is written, and every line says what it is about."""
    arguments, expected = REFUSED[program]
    before = sorted(place.rglob("*"))
    assert main(arguments if " " in program else [program, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    for line, due in zip(lines, expected, strict=True):
        assert line.startswith(f"error: {due}"), captured.err
    assert sorted(place.rglob("*")) == before


def test_states_of_a_model_without(place: Path, capsys: pytest.CaptureFixture) -> None:
    """Said from the config alone, in the words of convert."""
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4}
    Path("other/config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert main(["states", "other"]) == 2
    assert "need recurrent states, of which this llama model has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", "other", "--state-ratios", "4"], ["has none that can be compressed"]),
        (["sweep", "other", "--ratios", "2", "1000"], ["compression_ratio=1000 leaves"]),
        (
            ["sweep", MODEL, "--ratios", "900", "999", "--state-ratios", "2"],
            ["compression_ratio=900 leaves", "compression_ratio=999 leaves"],
        ),
        (["sweep", MODEL, "--state-ratios", "1", "1000"], ["state_ratio=1000 leaves"]),
        (["states", MODEL, "--points", "2", "1000", "900:int8"], ["=1000 leaves", "=900 leaves"]),
        (["demo", "--ratios", "4", "1000"], ["compression_ratio=1000 leaves"]),
    ],
    ids=lambda value: " ".join(value).replace(MODEL, "MODEL"),
)
def test_ratios_that_cannot_be_had(
    arguments: list[str],
    said: list[str],
    place: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused from the config alone: no weights are loaded and no text is read."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4}
    Path("other/config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    before = sorted(place.rglob("*"))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert all(words in line for words in said), line
    assert line.count("leaves") == len([words for words in said if "leaves" in words])
    assert sorted(place.rglob("*")) == before


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from cacheshrink_hybrid.cli import inspect

    def stop(given: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "run", stop)
    assert main(["inspect", MODEL]) == 130
    assert capsys.readouterr().err == "interrupted\n"
