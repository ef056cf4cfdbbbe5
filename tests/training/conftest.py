"""Trainings in two processes: all of them in one launch, since every process takes seconds to
start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.subprocesses import IN_TWO_PROCESSES, run_python
from tests.training.processes import prepare_finetuning


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what `tests.training.processes` says."""
    output = tmp_path_factory.mktemp("two")
    prepare_finetuning(output / "finetune")
    program = "tests.training.processes", "shared", output
    done = run_python(*IN_TWO_PROCESSES, *program, timeout=600, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]
    return output
