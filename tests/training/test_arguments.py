"""Precision and launchers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid.errors import ConfigError
from tests.models import unchanged
from tests.training.students import losses, student, train


def test_bfloat16() -> None:
    model = student().bfloat16()
    stats = train(model)
    assert stats["settings"]["bf16"] is None
    assert all(torch.isfinite(torch.tensor(losses(stats))))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_float16_models_train_in_single_precision() -> None:
    """And are what they were afterwards, but for what was trained."""
    model = student().half()
    frozen = {n: t.clone() for n, t in model.state_dict().items() if "mlp" in n or "embed" in n}
    stats = train(model, loss="reconstruction")
    assert all(torch.isfinite(torch.tensor(losses(stats))))
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert all(torch.equal(model.state_dict()[n], t) for n, t in frozen.items())


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_launchers_that_cut_parameters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    model = student()
    with unchanged(model), pytest.raises(ConfigError, match=f"{name} .* set shard_frozen_weights"):
        train(model)


def test_one_process_has_nobody_to_share_with() -> None:
    model = student()
    with unchanged(model), pytest.raises(ConfigError, match="this is the only one"):
        train(model, shard_frozen_weights=True)


def test_tensorboard_holds_the_losses(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    stats = train(student(), report_to="tensorboard", output_dir=tmp_path, max_steps=2)
    (events,) = tmp_path.rglob("events.out.tfevents*")
    found = accumulator.EventAccumulator(str(events))
    found.Reload()
    logged = [event.value for event in found.Scalars("train/loss")]
    assert logged == pytest.approx(losses(stats), rel=1e-6)


def test_tensorboard_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cacheshrink_hybrid.training.trainer.is_tensorboard_available"
    monkeypatch.setattr(name, lambda: False)
    model = student()
    with unchanged(model), pytest.raises(ConfigError, match="pip install"):
        train(model, report_to="tensorboard", output_dir=tmp_path)
