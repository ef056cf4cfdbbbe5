"""The ring of recent inputs beside a state in the pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError
from ..state_pages import StatePages, StatePlace


@dataclass(frozen=True, eq=False, kw_only=True)
class ReplayRing:
    """Inputs since a state was last written, in the frames of that state.

    Attributes:
        length: L, inputs that fit.
        values: where x lies, (L, M, P).
        writes: where B lies, (L, G, width), in the state's basis.
        steps: where step sizes lie, (L, M), float32.
        groups: G.
        dtype: of x and B: float32, float16 or bfloat16.
    """

    length: int
    values: StatePlace
    writes: StatePlace
    steps: StatePlace
    groups: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        faults = []
        if not 1 <= self.length <= 64:
            faults.append(f"length={self.length} must be in [1, 64]")
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            faults.append(f"inputs of {self.dtype}; due is float32, float16 or bfloat16")
        for place in (self.values, self.writes, self.steps):
            if place.row_bytes < 16 or place.row_bytes % 16 or place.first_offset % 16:
                faults.append(f"{place} must lie at multiples of 16 bytes")
        if faults:
            raise ConfigError("; ".join(faults))

    def shapes(self, pages: StatePages) -> dict[str, tuple[StatePlace, tuple, torch.dtype]]:
        """Place, shape and type of each part."""
        M, P = pages.num_heads, pages.head_dim
        return {
            "values": (self.values, (self.length, M, P), self.dtype),
            "writes": (self.writes, (self.length, self.groups, pages.width), self.dtype),
            "steps": (self.steps, (self.length, M), torch.float32),
        }

    def num_frames(self, pages: StatePages) -> int:
        """Frames that a table must have to reach everything, the state included."""
        frames = [pages.num_frames]
        for place, shape, dtype in self.shapes(pages).values():
            last = torch.Size(shape).numel() * dtype.itemsize - 1
            frames.append(int(place.locate(torch.tensor(last), pages.frame_bytes)[0]) + 1)
        return max(frames)


def part_addresses(pages: StatePages, ring: ReplayRing, name: str, table: Tensor) -> Tensor:
    """Byte in the arena of each byte of a part of the ring, (B, bytes)."""
    place, shape, dtype = ring.shapes(pages)[name]
    byte = torch.arange(torch.Size(shape).numel() * dtype.itemsize, device=table.device)
    frame, offset = place.locate(byte, pages.frame_bytes)
    return table.clamp_min(0).long()[:, frame] * pages.frame_bytes + offset
