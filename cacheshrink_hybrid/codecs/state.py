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

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import PlanError

STATE_CODES = ("float32", "float16", "bfloat16", "int8", "float8")
BLOCK = 16
ROW_ALIGNMENT = 16
SCALE_ZERO, STEPS_PER_OCTAVE = 192, 6
LARGEST_INT8 = 127.0
LARGEST_FLOAT8 = 448.0
HALF_EXPONENT = 15
"""A head's largest value is scaled below 2^15, half of what float16 can hold."""


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
        used = sum(sum(self.sizes(segment)) for segment in self.segments)
        return -(-used // ROW_ALIGNMENT) * ROW_ALIGNMENT

    def encode(self, state: Tensor) -> Tensor:
        """(B, M, P, r) float32 -> (B, row_bytes) uint8."""
        codes, scales = [], []
        for segment in self.stored_segments:
            part = state if self._whole else state[:, list(segment.heads), :, : segment.rank]
            code, scale = _encode(part.float(), segment.code, self.block)
            codes.append(code.reshape(len(state), -1).view(torch.uint8))
            if scale is not None:
                scales.append(scale.reshape(len(state), -1))
        used = sum(part.shape[1] for part in codes + scales)
        padding = codes[0].new_zeros(len(state), self.row_bytes - used)
        return torch.cat([*codes, *scales, padding], dim=1)

    def zeros(self, batch_size: int, device: torch.device) -> Tensor:
        """Rows (B, row_bytes) of states of zeros."""
        shape = (batch_size, self.num_heads, self.head_dim, self.width)
        return self.encode(torch.zeros(shape, device=device))

    def decode(self, rows: Tensor) -> Tensor:
        """(B, row_bytes) uint8 -> (B, M, P, r) float32."""
        shape = (len(rows), self.num_heads, self.head_dim, self.width)
        state = None
        start, end = 0, sum(self.sizes(segment)[0] for segment in self.segments)
        for segment in self.stored_segments:
            num_codes, num_scales = self.sizes(segment)
            codes, scales = rows[:, start : start + num_codes], rows[:, end : end + num_scales]
            start, end = start + num_codes, end + num_scales
            size = (len(rows), len(segment.heads), self.head_dim, segment.rank)
            part = _decode(codes, scales, segment.code, size, self.block)
            if self._whole:
                return part
            if state is None:
                state = part.new_zeros(shape)
            state[:, list(segment.heads), :, : segment.rank] = part
        assert state is not None
        return state

    @cached_property
    def stored_segments(self) -> tuple[StateSegment, ...]:
        """Segments in the order of their bytes: wide elements first, so that each segment starts
        where its elements may."""
        order = {"float32": 0, "float16": 1, "bfloat16": 1, "int8": 2, "float8": 2}
        return tuple(sorted(self.segments, key=lambda segment: order[segment.code]))

    @cached_property
    def _whole(self) -> bool:
        return len(self.segments) == 1


def _encode(state: Tensor, code: str, block: int) -> tuple[Tensor, Tensor | None]:
    if code == "float32":
        return state, None
    if code == "bfloat16":
        return state.bfloat16(), None
    if code == "float16":
        largest = state.abs().amax(dim=(-2, -1), keepdim=True)
        exponent = torch.frexp(largest).exponent.clamp(-100, 100)
        scaled = torch.ldexp(state, HALF_EXPONENT - exponent)
        return scaled.half(), (exponent + 128).to(torch.uint8)
    if code == "int8":
        blocks = state.unflatten(-2, (-1, block))
        scale, factor = _scale_bytes(blocks.abs().amax(dim=-2, keepdim=True), LARGEST_INT8)
        codes = (blocks * factor).round_().clamp_(-LARGEST_INT8, LARGEST_INT8)
        return codes.to(torch.int8), scale
    scale, factor = _scale_bytes(state.abs().amax(dim=-2, keepdim=True), LARGEST_FLOAT8)
    codes = (state * factor).clamp_(-LARGEST_FLOAT8, LARGEST_FLOAT8)
    return codes.to(torch.float8_e4m3fn), scale


def _decode(codes: Tensor, scales: Tensor, code: str, size: tuple[int, ...], block: int) -> Tensor:
    B, m, P, r = size
    if code == "float32":
        return codes.view(torch.float32).reshape(size)
    if code == "bfloat16":
        return codes.view(torch.bfloat16).reshape(size).float()
    if code == "float16":
        exponent = scales.reshape(B, m, 1, 1).to(torch.int32) - (128 + HALF_EXPONENT)
        return torch.ldexp(codes.view(torch.float16).reshape(size).float(), exponent)
    if code == "int8":
        blocks = codes.view(torch.int8).reshape(B, m, P // block, block, r).float()
        return (blocks * _scales(scales).reshape(B, m, P // block, 1, r)).reshape(size)
    values = codes.view(torch.float8_e4m3fn).reshape(size).float()
    return values * _scales(scales).reshape(B, m, 1, r)


def _scale_bytes(largest: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """The smallest scale byte that keeps `largest` within `top`, and what to multiply with."""
    wanted = STEPS_PER_OCTAVE * torch.log2(largest / top) + SCALE_ZERO
    scale = torch.ceil(wanted).clamp_(0, 255)  # log2(0) is -inf, which is step 0
    return scale.to(torch.uint8), torch.exp2((SCALE_ZERO - scale) / STEPS_PER_OCTAVE)


def _scales(scales: Tensor) -> Tensor:
    return torch.exp2((scales.float() - SCALE_ZERO) / STEPS_PER_OCTAVE)


def one_segment(num_heads: int, head_dim: int, rank: int, code: str) -> StateCodec:
    """All heads with one rank and one code."""
    segment = StateSegment(heads=tuple(range(num_heads)), rank=rank, code=code)
    return StateCodec(head_dim, (segment,))
