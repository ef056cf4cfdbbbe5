"""Faults of output directories and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacheshrink_hybrid.errors import CheckpointError, ConfigError, TrainingError
from tests.models import unchanged
from tests.training.students import student, train


def test_unwritable_output(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    model = student()
    with unchanged(model), pytest.raises(TrainingError, match="is a file; give a directory"):
        train(model, output_dir=file, save_steps=1)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("cacheshrink_hybrid.writing.shutil.disk_usage", lambda _: usage)
    model = student()
    with unchanged(model), pytest.raises(TrainingError, match=r"0.0 MiB free.*lower save_total"):
        train(model, output_dir=tmp_path, save_steps=1)


def test_checkpoint_of_another_training(tmp_path: Path) -> None:
    train(student(), output_dir=tmp_path, save_steps=1)
    other = student(ratio=2.0)
    with pytest.raises(CheckpointError, match="another training"):
        train(other, output_dir=tmp_path, save_steps=1, resume_from_checkpoint=True)


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        train(student(), output_dir=tmp_path, save_steps=1, resume_from_checkpoint=True)
