"""What every operation asks of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError


def arena_faults(arena: Tensor, name: str = "arena") -> list[str]:
    """What keeps a tensor from being an arena."""
    if arena.dtype == torch.uint8 and arena.ndim == 1 and arena.is_contiguous():
        return []
    return [f"{name} is {arena.dtype}, {arena.ndim}-d; due is contiguous 1-d uint8"]


def check_shapes(**given: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Refuse tensors of the wrong shape; None passes.

    Raises:
        ConfigError: naming all of them.
    """
    faults = [
        f"{name} has shape {tuple(tensor.shape)}; due is {shape}"
        for name, (tensor, shape) in given.items()
        if tensor is not None and tuple(tensor.shape) != shape
    ]
    if faults:
        raise ConfigError("; ".join(faults))
