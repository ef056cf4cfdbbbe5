"""Where a recurrent state S (M, P, r) lies in its row of bytes: M heads of P values by r channels.

Heads come in segments, each with its own rank and code:

    float32    as it is, 4 bytes per element
    float16    2 bytes, and a byte e per head for a scale of 2^(e - 143), so that no head overflows
    bfloat16   2 bytes
    int8       1 byte, and a scale byte for each block of neighbouring values of a channel
    float8     1 byte (e4m3), and a scale byte for every channel of a head

A scale byte q means 2^((q - 192) / 6): 256 steps of 12 % from 2^-32 to 2^10, rounded up, so that
nothing is clipped whose size lies between 3e-8 and 1.8e5. Blocks run along the values (P) of one
channel, because channels of a balanced basis differ in size far more than values do. All codes come
first, segment by segment, each (m, P, r); then all scales, (m), (m, P / block, r) or (m, r); then
zeros up to a multiple of 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ..errors import PlanError
from .names import STATE_CODES

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
MAX_EXPONENT = 100
"""Heads are scaled as if their largest value lay between 2^-100 and 2^100."""


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
class StateFormat:
    """The segments of a state, and where they lie.

    Attributes:
        head_dim: P.
        segments: together they are all heads.
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
        scales = {"float16": m, "int8": m * (P // self.block) * r, "float8": m * r}
        return ELEMENTS[segment.code].itemsize * m * P * r, scales.get(segment.code, 0)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of one row without its padding."""
        return sum(sum(self.sizes(segment)) for segment in self.segments)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one sequence's state."""
        return -(-self.num_bytes // ROW_ALIGNMENT) * ROW_ALIGNMENT

    @cached_property
    def places(self) -> tuple[tuple[StateSegment, slice, slice], ...]:
        """Bytes of codes and of scales of every segment within a row, in the order in which they
        are stored: wide elements first, so that each segment starts where its elements may."""
        stored = sorted(self.segments, key=lambda segment: -ELEMENTS[segment.code].itemsize)
        places = []
        start, end = 0, sum(self.sizes(segment)[0] for segment in self.segments)
        for segment in stored:
            num_codes, num_scales = self.sizes(segment)
            places.append((segment, slice(start, start + num_codes), slice(end, end + num_scales)))
            start, end = start + num_codes, end + num_scales
        return tuple(places)
