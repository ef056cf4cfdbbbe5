"""Coding recurrent states as rows of bytes, and back (`state_format` draws a row)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from .state_format import (
    ELEMENTS,
    HALF_EXPONENT,
    HALF_ZERO,
    LARGEST_FLOAT8,
    LARGEST_INT8,
    MAX_EXPONENT,
    SCALE_ZERO,
    STEPS_PER_OCTAVE,
    StateFormat,
    StateSegment,
)
from .tables import table


class StateCodec(StateFormat):
    """Codes states (B, M, P, r) as rows (B, row_bytes), and back.

    Channels beyond a segment's rank are zero in what goes in and in what comes out.
    """

    def encode(self, state: Tensor) -> Tensor:
        """(B, M, P, r) float32 -> (B, row_bytes) uint8."""
        rows = state.new_empty((len(state), self.row_bytes), dtype=torch.uint8)
        for segment, codes, scales in self._parts(rows):
            part = state if self._whole else state[:, list(segment.heads), :, : segment.rank]
            _encode(part.float(), segment.code, self.block, codes, scales)
        rows[:, self.num_bytes :] = 0
        return rows

    def zeros(self, batch_size: int, device: torch.device) -> Tensor:
        """Rows (B, row_bytes) of states of zeros."""
        shape = (batch_size, self.num_heads, self.head_dim, self.width)
        return self.encode(torch.zeros(shape, device=device))

    def decode(self, rows: Tensor) -> Tensor:
        """(B, row_bytes) uint8 -> (B, M, P, r) float32."""
        if self._whole:
            ((segment, codes, scales),) = self._parts(rows)
            return _decode(codes, segment.code, self.block, scales)
        shape = (len(rows), self.num_heads, self.head_dim, self.width)
        state = rows.new_zeros(shape, dtype=torch.float32)
        for segment, codes, scales in self._parts(rows):
            part = _decode(codes, segment.code, self.block, scales)
            state[:, list(segment.heads), :, : segment.rank] = part
        return state

    def _parts(self, rows: Tensor) -> Iterator[tuple[StateSegment, Tensor, Tensor]]:
        """Of every segment the codes (B, m, P, r) and the scale bytes (B, n), as views of rows."""
        for segment, at_codes, at_scales in self.places:
            codes = rows[:, at_codes].view(ELEMENTS[segment.code])
            shape = (len(segment.heads), self.head_dim, segment.rank)
            yield segment, codes.unflatten(1, shape), rows[:, at_scales]

    @cached_property
    def _whole(self) -> bool:
        return len(self.segments) == 1


def _encode(state: Tensor, code: str, block: int, codes: Tensor, scales: Tensor) -> None:
    """Write a segment's state (B, m, P, r), float32, to its codes and scale bytes."""
    if code in ("float32", "bfloat16"):
        codes.copy_(state)
        return
    if code == "float16":
        largest = state.abs().amax(dim=(-2, -1), keepdim=True)
        scale = torch.frexp(largest).exponent.clamp_(-MAX_EXPONENT, MAX_EXPONENT).add_(HALF_ZERO)
        found = state * _factors(scale, code, coding=True)
    elif code == "int8":
        blocks = state.unflatten(-2, (-1, block))
        scale = _scale_bytes(blocks.abs().amax(dim=-2, keepdim=True), LARGEST_INT8)
        found = (blocks * _factors(scale, code, coding=True)).round_()
        found = found.clamp_(-LARGEST_INT8, LARGEST_INT8).flatten(-3, -2)
    else:
        scale = _scale_bytes(state.abs().amax(dim=-2, keepdim=True), LARGEST_FLOAT8)
        found = (state * _factors(scale, code, coding=True)).clamp_(-LARGEST_FLOAT8, LARGEST_FLOAT8)
    codes.copy_(found)
    scales.copy_(scale.flatten(1))


def _decode(codes: Tensor, code: str, block: int, scales: Tensor) -> Tensor:
    """The state (B, m, P, r) of a segment, float32 and in memory of its own."""
    state = codes.to(torch.float32, copy=True)
    if code not in ("float32", "bfloat16"):
        # As many values in a row share a scale as there are values to one.
        blocks = state.unflatten(-2, (-1, block)) if code == "int8" else state
        factors = _factors(scales, code, coding=False)
        if code == "float16":
            blocks *= factors[:, :, None, None]
        else:
            blocks *= factors.reshape(*blocks.shape[:-2], 1, blocks.shape[-1])
    return state


def _scale_bytes(largest: Tensor, top: float) -> Tensor:
    """The smallest scale byte that keeps `largest` within `top`, as float32."""
    wanted = torch.log2(largest / top).mul_(STEPS_PER_OCTAVE).add_(SCALE_ZERO)
    return wanted.ceil_().clamp_(0, 255)  # log2(0) is -inf, which is step 0


def _factors(scales: Tensor, code: str, *, coding: bool) -> Tensor:
    """What to multiply values with when they are coded, or codes when they are decoded."""
    factors = _factor_table(code, coding, scales.device)
    return factors.index_select(0, scales.reshape(-1).int()).view(scales.shape)


@table
def _factor_table(code: str, coding: bool, device: torch.device) -> Tensor:
    """`_factors` of every scale byte, (256,)."""
    byte = torch.arange(256.0)
    if code == "float16":
        exponent = byte - (HALF_ZERO + HALF_EXPONENT)
    else:
        exponent = (byte - SCALE_ZERO) / STEPS_PER_OCTAVE
    return torch.exp2(-exponent if coding else exponent).to(device)


def one_segment(num_heads: int, head_dim: int, rank: int, code: str) -> StateCodec:
    """All heads with one rank and one code."""
    segment = StateSegment(heads=tuple(range(num_heads)), rank=rank, code=code)
    return StateCodec(head_dim, (segment,))
