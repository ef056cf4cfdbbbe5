"""No program writes over what it reads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cacheshrink_hybrid.cli import main
from cacheshrink_hybrid.demo import model_path

MODEL = str(model_path())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text by several names, and a model, where results lie as well."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Return the sum of all items, or None.\n" * 20)
    Path("results").mkdir()
    for name in ("states.json", "sweep.md", "throughput.json", "allocator.png"):
        os.link("text.txt", f"results/{name}")
    os.link("text.txt", "hard.txt")
    os.symlink("text.txt", "soft.png")
    Path("model/sub").mkdir(parents=True)
    shutil.copy(model_path() / "config.json", "model/config.json")
    Path("model/sub/notes.json").write_text("{}")
    os.symlink("model", "other")
    os.symlink("model/config.json", "config-link")
    return tmp_path


OVER_INPUTS = {
    "text": ["perplexity", MODEL, "--text", "text.txt", "--json", "text.txt"],
    "other spelling": ["perplexity", MODEL, "--text", "text.txt", "--json", "model/../text.txt"],
    "hard link": ["perplexity", MODEL, "--text", "text.txt", "--json", "hard.txt"],
    "plot": ["perplexity", MODEL, "--text", "text.txt", "--plot", "soft.png"],
    "config": ["perplexity", "model", "--json", "model/config.json"],
    "in a folder of the model": ["memory", "model", "--json", "model/sub/notes.json"],
    "model by a link": ["recall", "other", "--json", "model/config.json"],
    "file by a link": ["recall", "model", "--json", "config-link"],
    "second model": ["memory", MODEL, "model", "--json", "other/config.json"],
    "config file": ["states", MODEL, "--text", "text.txt", "--output", "results"],
    "calibration": ["sweep", MODEL, "--calibration", "text.txt", "--output", "results"],
    "trace": ["throughput", MODEL, "--trace", "text.txt", "--output", "results"],
    "traces": ["allocator", "--traces", "text.txt", "--output", "results"],
}


@pytest.mark.parametrize("arguments", OVER_INPUTS.values(), ids=OVER_INPUTS)
def test_inputs_are_not_written_over(arguments: list[str], place: Path, capsys) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: --")
    assert "is read by" in line and "would be lost" in line
    assert captured.out == ""
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_new_file_beside_a_model_is_fine(place: Path) -> None:
    target = place / "copy"
    shutil.copytree(model_path(), target)
    arguments = ["memory", str(target), "--lengths", "2", "--json", str(target / "memory.json")]
    assert main(arguments) == 0
    assert (target / "memory.json").is_file()
