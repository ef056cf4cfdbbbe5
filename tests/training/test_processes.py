"""Training in several processes, and in one that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(
    *arguments: object, processes: int = 1, module: str = "tests.training.processes"
) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--nproc-per-node", str(processes)]
        launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m"]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launch, module, *map(str, arguments)],
        env=os.environ | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def result(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["lm", "local", "distillation"])
def test_two_processes_equal_one(loss: str, tmp_path: Path) -> None:
    """The same global batch, of sequences of unequal lengths, on gloo."""
    one = result(start(tmp_path / "one", "--batch-size", 4, "--loss", loss))
    two = result(start(tmp_path / "two", "--batch-size", 2, "--loss", loss, processes=2))
    assert len(one["losses"]) == 6
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["stats"]["perplexity_after"] == pytest.approx(
        one["stats"]["perplexity_after"], rel=1e-4
    )


@pytest.mark.slow
def test_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """kill -9 in the fifth step; resumed from the fourth's checkpoint, bit for bit."""
    whole = result(start(tmp_path / "whole"))
    killed = start(tmp_path / "killed", "--die-at", 4)
    assert killed.returncode == -signal.SIGKILL
    resumed = result(start(tmp_path / "killed", "--resume"))
    assert resumed["losses"] == whole["losses"]
    assert resumed["final"] == whole["final"]
