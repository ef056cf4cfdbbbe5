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
