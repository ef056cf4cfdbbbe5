"""The throughput program serves what generate() gives, and says so."""

from __future__ import annotations

import json
from pathlib import Path

from cacheshrink_hybrid.cli import main
from cacheshrink_hybrid.demo import model_path


def test_program(tmp_path: Path, capsys) -> None:
    sizes = ["--requests", "4", "--baseline-requests", "2", "--max-prompt", "12"]
    arguments = [str(model_path()), *sizes, "--max-output", "3", "--output", str(tmp_path)]
    assert main(["throughput", *arguments]) == 0
    assert "2 of 2" in capsys.readouterr().out
    runs = json.loads((tmp_path / "throughput.json").read_text())["runs"]
    assert [run["requests"] for run in runs] == [2, 4, 4]
    assert main(["throughput", *arguments, "--requests", "0"]) == 2
    assert main(["throughput", *arguments, "--trace", "nothing"]) == 2


def test_memory_that_is_none_is_told_before_any_work(monkeypatch, capsys) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("cacheshrink_hybrid.cli.throughput._model", load)
    for memory in ("lots", "0", "150%"):
        assert main(["throughput", str(model_path()), "--cache-memory", memory]) == 2
        assert memory.rstrip("%") in capsys.readouterr().err
