"""The rows of one layer in the arena: where they lie and how they read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...codecs.levels import row_tables
from ...codecs.row_layout import RowLayout
from ...errors import ConfigError
from ..checks import arena_faults


@dataclass(frozen=True, eq=False, kw_only=True)
class PagedRows:
    """Rows of one layer: token t of a sequence lies in frame `frame_table[t // frame_tokens]`, at
    byte `frame * frame_bytes + layer_offset + (t % frame_tokens) * layout.row_bytes` of the arena.

    Attributes:
        arena: the pool, 1-d uint8.
        layout: what a row holds.
        frame_bytes: size of a frame.
        frame_tokens: tokens per frame.
        layer_offset: first byte of the layer's rows in a frame.

    Raises:
        ConfigError: tensors of another type, or rows that pass the end of a frame.
    """

    arena: Tensor
    layout: RowLayout
    frame_bytes: int
    frame_tokens: int
    layer_offset: int = 0

    def __post_init__(self) -> None:
        faults = arena_faults(self.arena)
        end = self.layer_offset + self.frame_tokens * self.layout.row_bytes
        if self.layer_offset < 0 or self.frame_tokens < 1 or end > self.frame_bytes:
            faults.append(
                f"{self.frame_tokens} rows of {self.layout.row_bytes} bytes from byte "
                f"{self.layer_offset} do not fit a frame of {self.frame_bytes} bytes"
            )
        if not self._lie_at_multiples_of(32):
            faults.append(
                f"float32 channels do not lie at multiples of 4 bytes: frames of "
                f"{self.frame_bytes} bytes, layer_offset={self.layer_offset}, rows of "
                f"{self.layout.row_bytes}"
            )
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def tables(self) -> Tensor | None:
        """`row_tables` on the arena's device; None where reading takes no tables."""
        return row_tables(self.arena.device) if self.layout.uses_tables else None

    def at(self, frame_table: Tensor, positions: Tensor) -> Tensor:
        """Rows (B, n, row_bytes) at `positions` (B, n) of their sequences, from a table (B,
        frames); anything where there are none. Nothing waits for the device."""
        width, T = self.layout.row_bytes, self.frame_tokens
        view = self.arena.as_strided(
            (self.num_frames, T, width), (self.frame_bytes, width, 1), self.layer_offset
        )
        if not frame_table.shape[1]:
            return view.new_zeros(*positions.shape, width)
        entries = (positions // T).clamp(0, frame_table.shape[1] - 1)
        frames = frame_table.long().gather(1, entries).clamp_min(0)
        return view[frames, positions % T]

    @property
    def num_frames(self) -> int:
        return self.arena.numel() // self.frame_bytes

    @property
    def even(self) -> bool:
        """Whether 16-bit numbers lie at even addresses."""
        return self._lie_at_multiples_of(16)

    def _lie_at_multiples_of(self, bits: int) -> bool:
        """Whether numbers of so many bits, if there are any, lie at multiples of their size."""
        if bits not in self.layout.widths:
            return True
        places = [run.first_byte for run in self.layout.runs if run.bits == bits]
        places += [self.frame_bytes, self.layer_offset, self.layout.row_bytes]
        return all(place % (bits // 8) == 0 for place in places)


def check_frame_table(
    frame_table: Tensor, context_lens: Tensor, batch: int, first_slots: Tensor | None = None
) -> None:
    """Refuse tables of the wrong type or shape.

    Raises:
        ConfigError: unless frame_table is (B, max_frames), and context_lens and first_slots, where
            given, (B,), all int32.
    """
    faults = []
    if frame_table.ndim != 2 or frame_table.shape[0] != batch:
        faults.append(f"frame_table has shape {tuple(frame_table.shape)}; due is ({batch}, frames)")
    given = [("frame_table", frame_table), ("context_lens", context_lens)]
    if first_slots is not None:
        given.append(("first_slots", first_slots))
    for name, tensor in given[1:]:
        if tensor.shape != (batch,):
            faults.append(f"{name} has shape {tuple(tensor.shape)}; due is ({batch},)")
    for name, tensor in given:
        if tensor.dtype != torch.int32:
            faults.append(f"{name} is {tensor.dtype}; due is int32")
        if not tensor.is_contiguous():
            faults.append(f"{name} is not contiguous")
    if faults:
        raise ConfigError("; ".join(faults))
