"""Training in several processes, and in one that is killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid.calibration.text import load_texts
from cacheshrink_hybrid.checkpoint.load import load_mla_model
from cacheshrink_hybrid.evaluation.perplexity import compute_perplexity
from tests.subprocesses import run_python
from tests.training.processes import LOSSES, MAX_STEPS, trained


@pytest.mark.slow(group="two processes")
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_equal_one(loss: str, two_processes: Path, tmp_path: Path) -> None:
    """The same global batch, of sequences of unequal lengths."""
    one = trained(tmp_path, loss=loss, batch_size=4)
    assert len(one["losses"]) == MAX_STEPS
    for rank in (0, 1):
        two = torch.load(two_processes / f"{loss}.{rank}.pt")
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert two["stats"]["perplexity_after"] == pytest.approx(
            one["stats"]["perplexity_after"], rel=1e-4
        )


@pytest.mark.slow(group="two processes")
def test_the_program_with_frozen_weights_cut(two_processes: Path) -> None:
    directory = two_processes / "finetune"
    metrics = json.loads((directory / "out" / "metrics.json").read_text())
    assert metrics["settings"]["shard_frozen_weights"] is True
    trained_model, tokenizer = load_mla_model(directory / "out" / "model")
    assert all(parameter.isfinite().all() for parameter in trained_model.parameters())
    texts = load_texts(None, str(directory / "texts"))
    found = compute_perplexity(trained_model, tokenizer, texts[9::10], max_length=48)
    # What trained in float32 was saved in float16.
    assert found == pytest.approx(metrics["perplexity_after"], rel=1e-2)


@pytest.mark.slow
def test_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """kill -9 in the fifth step; resumed from the fourth's checkpoint, bit for bit."""
    arguments = "tests.training.processes", "killed", tmp_path / "killed", 4
    killed = run_python("-m", *arguments, CUDA_VISIBLE_DEVICES="")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    resumed = trained(tmp_path / "killed", resume=True)
    whole = trained(tmp_path / "whole")
    assert resumed["losses"] == whole["losses"]
    assert resumed["final"] == whole["final"]
