"""Where the window of a short convolution lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....errors import ConfigError
from ...checks import arena_faults
from ..pages import StatePlace


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvPages:
    """The last columns before a convolution, in the arena: (channels, columns) per sequence.

    Attributes:
        arena: the pool, 1-d uint8.
        frame_bytes: size of a frame.
        place: where they lie in a sequence's frames.
        channels: C.
        columns: W - 1, from the oldest to the newest.
        dtype: float32, float16 or bfloat16.
    """

    arena: Tensor
    frame_bytes: int
    place: StatePlace
    channels: int
    columns: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        faults = arena_faults(self.arena) + self.place.faults(self.frame_bytes)
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            faults.append(f"columns of {self.dtype}; due is float32, float16 or bfloat16")
        if self.columns < 1:
            faults.append(f"columns={self.columns} must be at least 1")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def num_bytes(self) -> int:
        return self.channels * self.columns * self.dtype.itemsize

    @property
    def num_frames(self) -> int:
        """Frames that a table must have to reach the last byte."""
        return self.place.num_frames(self.num_bytes, self.frame_bytes)
