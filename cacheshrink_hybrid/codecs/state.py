"""Recurrent states as rows of bytes: one row per sequence, heads in classes of one code each.

    float32    as it is, 4 bytes per element
    float16    2 bytes, and per head the exponent of a power-of-two scale, so that no head overflows
    bfloat16   2 bytes
    int8       1 byte, and a scale byte for every 16 neighbouring values of a channel
    float8     1 byte (e4m3), and a scale byte for every channel of a head

A scale byte q means 2^((q - 192) / 6): 256 steps of 12 % from 2^-32 to 2^10, rounded up, so that
nothing is clipped whose size lies between 3e-8 and 1.8e5. Blocks run along the values (P) of one
channel, because channels of a balanced basis differ in size far more than values do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import PlanError
from .names import STATE_CODES
from .tables import table

ELEMENTS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "float8": torch.float8_e4m3fn,
}
BLOCK = 16
ROW_ALIGNMENT = 16
SCALE_ZERO, STEPS_PER_OCTAVE = 192, 6
LARGEST_INT8 = 127.0
LARGEST_FLOAT8 = 448.0
HALF_EXPONENT = 15
"""A head's largest value is scaled below 2^15, half of what float16 can hold."""
HALF_ZERO = 128
"""The scale byte of a head whose largest value is in [1/2, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSegment:
    """Heads that share a rank and a code.

    Attributes:
        heads: which heads, ascending.
        rank: stored channels of each, r.
        code: one of `STATE_CODES`.
    """

    heads: tuple[int, ...]
    rank: int
    code: str

    def __post_init__(self) -> None:
        if self.code not in STATE_CODES:
            raise PlanError(f"state code {self.code!r} is unknown; one of {STATE_CODES} is due")


@dataclass(frozen=True)
class StateCodec:
    """Codes states (B, M, P, r) as rows (B, row_bytes).

    Channels beyond a segment's rank are zero in what goes in and in what comes out.
    """

    head_dim: int
    segments: tuple[StateSegment, ...]

    @property
    def num_heads(self) -> int:
        return sum(len(segment.heads) for segment in self.segments)

    @property
    def width(self) -> int:
        """r of the decoded state: the largest rank."""
        return max(segment.rank for segment in self.segments)

    @property
    def lossless(self) -> bool:
        return all(segment.code == "float32" for segment in self.segments)

    @cached_property
    def block(self) -> int:
        """Values that share a scale in int8: 16, or the largest power of two that divides P."""
        return min(BLOCK, self.head_dim & -self.head_dim)

    def sizes(self, segment: StateSegment) -> tuple[int, int]:
        """Bytes of codes and of scales of one segment."""
        m, P, r = len(segment.heads), self.head_dim, segment.rank
        return {
            "float32": (4 * m * P * r, 0),
            "float16": (2 * m * P * r, m),
            "bfloat16": (2 * m * P * r, 0),
            "int8": (m * P * r, m * (P // self.block) * r),
            "float8": (m * P * r, m * r),
        }[segment.code]

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one sequence's state, codes of all segments first, then scales, padded to 16."""
        return -(-self._used_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT

    def encode(self, state: Tensor) -> Tensor:
        """(B, M, P, r) float32 -> (B, row_bytes) uint8."""
        rows = state.new_empty((len(state), self.row_bytes), dtype=torch.uint8)
        for segment, codes, scales in self._parts(rows):
            part = state if self._whole else state[:, list(segment.heads), :, : segment.rank]
            _encode(part.float(), segment.code, self.block, codes, scales)
        rows[:, self._used_bytes :] = 0
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
        for segment, at_codes, at_scales in self._places:
            codes = rows[:, at_codes].view(ELEMENTS[segment.code])
            shape = (len(segment.heads), self.head_dim, segment.rank)
            yield segment, codes.unflatten(1, shape), rows[:, at_scales]

    @cached_property
    def _places(self) -> tuple[tuple[StateSegment, slice, slice], ...]:
        """Bytes of codes and of scales of every segment within a row."""
        places = []
        start, end = 0, sum(self.sizes(segment)[0] for segment in self.segments)
        for segment in self.stored_segments:
            num_codes, num_scales = self.sizes(segment)
            places.append((segment, slice(start, start + num_codes), slice(end, end + num_scales)))
            start, end = start + num_codes, end + num_scales
        return tuple(places)

    @cached_property
    def _used_bytes(self) -> int:
        """Bytes of one row without its padding."""
        return sum(sum(self.sizes(segment)) for segment in self.segments)

    @cached_property
    def stored_segments(self) -> tuple[StateSegment, ...]:
        """Segments in the order of their bytes: wide elements first, so that each segment starts
        where its elements may."""
        order = {"float32": 0, "float16": 1, "bfloat16": 1, "int8": 2, "float8": 2}
        return tuple(sorted(self.segments, key=lambda segment: order[segment.code]))

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
        scale = torch.frexp(largest).exponent.clamp_(-100, 100).add_(HALF_ZERO)
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
