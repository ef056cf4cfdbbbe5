"""Where training writes: whether it can, and which of its checkpoints are whole."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import CheckpointError, TrainingError
from ..writing import space_fault, write_fault
from .attachment import Attachment
from .optimizer import state_elements
from .settings import TrainingConfig

WEIGHTS_NAME = "trained.safetensors"
COMPLETE_NAME = "complete"


def needed_bytes(attachment: Attachment, config: TrainingConfig) -> int:
    """Checkpoints (weights and the optimizer's state each, one more while the oldest is being
    replaced)."""
    if config.save_steps is None:
        return 0
    parameters = [item.parameter for item in attachment.parameters]
    trained = sum(p.nbytes + p.element_size() * state_elements(p) for p in parameters)
    buffers = sum(buffer.nbytes for buffer in attachment.bases.buffers())
    return (config.save_total_limit + 1) * (trained + buffers)


def check_writable(directory: Path, needed_bytes: int) -> None:
    """Raise `TrainingError` unless `needed_bytes` can be written to `directory`, which need not
    exist yet."""
    fault = write_fault(directory)
    if fault is not None:
        raise TrainingError(fault)
    fault = space_fault(directory, needed_bytes)
    if fault is not None:
        raise TrainingError(f"{fault}, or lower save_total_limit")


def save_trained(model: nn.Module, names: list[str], directory: Path) -> None:
    """Write the parameters of these names, and the bases' buffers."""
    state = model.state_dict()
    save_file({name: state[name].contiguous() for name in names}, directory / WEIGHTS_NAME)


def load_trained(model: nn.Module, names: list[str], directory: Path) -> None:
    """Read what `save_trained` wrote; the model is unchanged if it does not fit.

    Raises:
        CheckpointError: no such file, or other names or shapes.
    """
    try:
        saved = load_file(directory / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory} cannot be resumed from ({error}); give a checkpoint of this training, or "
            "start anew"
        ) from error
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if shapes != {name: tuple(state[name].shape) for name in names}:
        raise CheckpointError(
            f"{directory} was written by another training: its tensors do not fit this model and "
            "its settings; use the same model and settings, or start anew"
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            state[name].copy_(tensor)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [path for path in directory.glob("checkpoint-*") if (path / COMPLETE_NAME).is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
