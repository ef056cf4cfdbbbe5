"""Where the recurrent states of one layer lie in the arena (`codecs.state_format` draws one)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ...codecs.state_format import StateFormat
from ...errors import ConfigError, KernelUnavailableError
from ..checks import arena_faults


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

    def faults(self, frame_bytes: int) -> list[str]:
        """What keeps kernels from finding it in frames of this size."""
        faults = []
        if self.row_bytes < 16 or self.row_bytes % 16 or self.first_offset % 16:
            faults.append(f"{self} must lie at multiples of 16 bytes")
        if frame_bytes % 16 or frame_bytes < self.row_bytes:
            faults.append(f"frames of {frame_bytes} bytes; due is a multiple of 16")
        if self.first_offset + self.first_rows * self.row_bytes > frame_bytes:
            faults.append(f"{self} passes the end of a frame of {frame_bytes} bytes")
        return faults

    def num_frames(self, num_bytes: int, frame_bytes: int) -> int:
        """Frames that a table must have to reach the last of so many bytes."""
        frame, _ = self.locate(torch.tensor(num_bytes - 1), frame_bytes)
        return int(frame) + 1

    def addresses(self, table: Tensor, num_bytes: int, frame_bytes: int) -> Tensor:
        """Byte in the arena of each of so many bytes, (B, num_bytes), given the frames (B, n)."""
        byte = torch.arange(num_bytes, device=table.device)
        frame, offset = self.locate(byte, frame_bytes)
        return table.clamp_min(0).long()[:, frame] * frame_bytes + offset

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
        format: how it is coded.

    Raises:
        ConfigError: heads that are missing or occur twice, or misplaced rows.
    """

    arena: Tensor
    frame_bytes: int
    place: StatePlace
    format: StateFormat

    def __post_init__(self) -> None:
        faults = arena_faults(self.arena) + self.place.faults(self.frame_bytes)
        heads = sorted(head for segment in self.format.segments for head in segment.heads)
        if not heads or heads != list(range(len(heads))):
            faults.append(f"segments hold heads {heads}; due is every head once")
        if any(segment.rank < 1 for segment in self.format.segments):
            faults.append("a segment has no channels; ranks must be at least 1")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def num_frames(self) -> int:
        """Frames that a table must have to reach the last byte."""
        return self.place.num_frames(self.format.num_bytes, self.frame_bytes)


@cache
def int32_ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers as an int32 tensor, made once."""
    return torch.tensor(ids, dtype=torch.int32, device=device)


def check_state_tables(
    num_frames: int, batch: int, read_table: Tensor, write_table: Tensor
) -> None:
    """Refuse tables of the wrong type or shape.

    Args:
        num_frames: frames of a state.

    Raises:
        ConfigError: unless both are (B, frames of a state), int32.
    """
    faults = []
    for name, table in (("read_table", read_table), ("write_table", write_table)):
        if table.ndim != 2 or table.shape[0] != batch or table.shape[1] < num_frames:
            faults.append(f"{name} has shape {tuple(table.shape)}; due is ({batch}, {num_frames})")
        if table.dtype != torch.int32 or not table.is_contiguous():
            faults.append(f"{name} is {table.dtype}; due is contiguous int32")
    if read_table.shape != write_table.shape:
        faults.append("read_table and write_table have different shapes")
    if faults:
        raise ConfigError("; ".join(faults))


MAX_HEAD = 65536
"""Elements of a head whose scale depends on all of it, which has to fit one program."""


def check_head_sizes(states: StateFormat) -> None:
    """Refuse heads that kernels cannot code.

    Raises:
        KernelUnavailableError: a scale that depends on more elements than a program holds.
    """
    for segment in states.segments:
        elements = _power_of_two(states.head_dim) * _power_of_two(segment.rank)
        if segment.code in ("float16", "float8") and elements > MAX_HEAD:
            raise KernelUnavailableError(
                f"{segment.code} states have a scale per head, and heads of {states.head_dim} x "
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
