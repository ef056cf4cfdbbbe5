"""The recurrent states of one layer in the arena: where they lie and how they are coded.

A state is S (M, P, r): M heads of P values by r channels. Heads come in segments, each with its own
rank and code:

    float32, bfloat16   as they are
    float16             scaled by a power of two per head; a byte e per head, 2^(e - 143)
    int8                a scale byte for each block of neighbouring values of a channel; a block
                        is 16 values, or the largest power of two that divides P
    float8              e4m3, a scale byte for each channel of a head

A scale byte q stands for 2^((q - 192) / 6), or with other steps per octave. All codes come first,
segment by segment, each (m, P, r); then all scales, (m), (m, P / block, r) or (m, r).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from ...errors import ConfigError, KernelUnavailableError

CODE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}
MAX_BLOCK = 16
SCALE_ZERO = 192
STEPS_PER_OCTAVE = 6
LARGEST_INT8 = 127.0
LARGEST_FLOAT8 = 448.0
EXPONENT_ZERO = 128
HALF_EXPONENT = 15
MAX_EXPONENT = 100
"""float16: a head whose largest number is below 2^e is stored times 2^(15 - e), |e| <= 100, and the
byte is e + 128."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSegment:
    """Heads that share a rank and a code."""

    heads: tuple[int, ...]
    rank: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePlace:
    """Where a tensor of fixed size lies in the frames of a sequence's state.

    Rows of `row_bytes` bytes, a multiple of 16, never straddle frames. The first `first_rows` of
    them lie from byte `first_offset` of frame number `first_frame` on; those that follow fill one
    frame after the other from its first byte on.
    """

    row_bytes: int
    first_frame: int
    first_offset: int
    first_rows: int

    @staticmethod
    def packed(frame_bytes: int, *, first_byte: int = 0) -> StatePlace:
        """A string of bytes that is cut at frames only, from a multiple of 16 on."""
        frame, offset = divmod(first_byte, frame_bytes)
        rows = (frame_bytes - offset) // 16
        return StatePlace(row_bytes=16, first_frame=frame, first_offset=offset, first_rows=rows)

    def locate(self, byte: Tensor, frame_bytes: int) -> tuple[Tensor, Tensor]:
        """Number of the frame within the state, and byte in it, of bytes of the tensor."""
        row, rest = byte // self.row_bytes, byte % self.row_bytes
        late = row - self.first_rows
        per_frame = frame_bytes // self.row_bytes
        frame = torch.where(late >= 0, late // per_frame + 1, 0) + self.first_frame
        start = torch.where(
            late >= 0, late % per_frame * self.row_bytes, self.first_offset + row * self.row_bytes
        )
        return frame, start + rest


@dataclass(frozen=True, eq=False, kw_only=True)
class StatePages:
    """The states of one layer.

    Attributes:
        arena: the pool, 1-d uint8.
        frame_bytes: size of a frame.
        place: where a state lies in its frames.
        head_dim: P.
        segments: in the order in which they are stored.
        steps_per_octave: scale bytes from one power of two to the next.

    Raises:
        ConfigError: unknown codes, heads that are missing or occur twice, or misplaced rows.
    """

    arena: Tensor
    frame_bytes: int
    place: StatePlace
    head_dim: int
    segments: tuple[StateSegment, ...]
    steps_per_octave: int = STEPS_PER_OCTAVE

    def __post_init__(self) -> None:
        faults = []
        if self.steps_per_octave < 1:
            faults.append(f"steps_per_octave={self.steps_per_octave} must be at least 1")
        if self.arena.dtype != torch.uint8 or self.arena.ndim != 1:
            faults.append(f"arena is {self.arena.dtype}, {self.arena.ndim}-d; due is 1-d uint8")
        heads = sorted(head for segment in self.segments for head in segment.heads)
        if not heads or heads != list(range(len(heads))):
            faults.append(f"segments hold heads {heads}; due is every head once")
        for segment in self.segments:
            if segment.code not in CODE_BYTES:
                faults.append(f"state code {segment.code!r}; allowed are {list(CODE_BYTES)}")
            if segment.rank < 1:
                faults.append(f"rank {segment.rank} must be at least 1")
        place = self.place
        if place.row_bytes < 16 or place.row_bytes % 16 or place.first_offset % 16:
            faults.append(f"{place} must lie at multiples of 16 bytes")
        if self.frame_bytes % 16 or self.frame_bytes < place.row_bytes:
            faults.append(f"frames of {self.frame_bytes} bytes; due is a multiple of 16")
        if place.first_offset + place.first_rows * place.row_bytes > self.frame_bytes:
            faults.append(f"{place} passes the end of a frame of {self.frame_bytes} bytes")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def num_heads(self) -> int:
        return sum(len(segment.heads) for segment in self.segments)

    @property
    def width(self) -> int:
        """The largest rank."""
        return max(segment.rank for segment in self.segments)

    @property
    def block(self) -> int:
        """Values of a channel that share a scale in int8."""
        return min(MAX_BLOCK, self.head_dim & -self.head_dim)

    def num_codes(self, segment: StateSegment) -> int:
        return len(segment.heads) * self.head_dim * segment.rank

    def num_scales(self, segment: StateSegment) -> int:
        heads = len(segment.heads)
        return {
            "float16": heads,
            "int8": heads * (self.head_dim // self.block) * segment.rank,
            "float8": heads * segment.rank,
        }.get(segment.code, 0)

    @cached_property
    def starts(self) -> tuple[tuple[int, int], ...]:
        """First byte of the codes and of the scales of each segment."""
        codes = [self.num_codes(s) * CODE_BYTES[s.code] for s in self.segments]
        scales = [self.num_scales(s) for s in self.segments]
        return tuple(
            (sum(codes[:i]), sum(codes) + sum(scales[:i])) for i in range(len(self.segments))
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of a state, codes and scales."""
        codes = sum(self.num_codes(s) * CODE_BYTES[s.code] for s in self.segments)
        return codes + sum(self.num_scales(s) for s in self.segments)

    @property
    def num_frames(self) -> int:
        """Frames that a table must have to reach the last byte."""
        frame, _ = self.place.locate(torch.tensor(self.num_bytes - 1), self.frame_bytes)
        return int(frame) + 1


@cache
def int32_ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers as an int32 tensor, made once."""
    return torch.tensor(ids, dtype=torch.int32, device=device)


def check_state_tables(
    pages: StatePages, batch: int, read_table: Tensor, write_table: Tensor
) -> None:
    """Refuse tables of the wrong type or shape.

    Raises:
        ConfigError: unless both are (B, frames of a state), int32.
    """
    faults = []
    for name, table in (("read_table", read_table), ("write_table", write_table)):
        if table.ndim != 2 or table.shape[0] != batch or table.shape[1] < pages.num_frames:
            faults.append(
                f"{name} has shape {tuple(table.shape)}; due is ({batch}, {pages.num_frames})"
            )
        if table.dtype != torch.int32 or not table.is_contiguous():
            faults.append(f"{name} is {table.dtype}; due is contiguous int32")
    if read_table.shape != write_table.shape:
        faults.append("read_table and write_table have different shapes")
    if faults:
        raise ConfigError("; ".join(faults))


MAX_HEAD = 65536
"""Elements of a head whose scale depends on all of it, which has to fit one program."""


def check_head_sizes(segments: Sequence[StateSegment], head_dim: int) -> None:
    """Refuse heads that kernels cannot code.

    Raises:
        KernelUnavailableError: a scale that depends on more elements than a program holds.
    """
    for segment in segments:
        elements = _power_of_two(head_dim) * _power_of_two(segment.rank)
        if segment.code in ("float16", "float8") and elements > MAX_HEAD:
            raise KernelUnavailableError(
                f"{segment.code} states have a scale per head, and heads of {head_dim} x "
                f"{segment.rank} do not fit one program ({MAX_HEAD} elements); code them as int8, "
                "bfloat16 or float32, or use backend='torch'"
            )


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def num_groups(shared: Tensor, num_heads: int) -> int:
    """Groups of a tensor (B, G, width) that heads share.

    Raises:
        ConfigError: unless every group has equally many heads.
    """
    if shared.ndim != 3 or num_heads % shared.shape[1]:
        raise ConfigError(
            f"{num_heads} heads do not share a tensor of shape {tuple(shared.shape)}; due is "
            "(B, groups, width), with groups a divisor of the heads"
        )
    return shared.shape[1]


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
