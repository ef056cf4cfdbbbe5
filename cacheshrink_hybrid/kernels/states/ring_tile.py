"""Device functions that read and write rings of inputs. Used by every kernel that replays."""

from dataclasses import dataclass

import triton
import triton.language as tl

from ..numerics import TRITON_DTYPES, constant, rounded
from .addresses import FrameRows, locate
from .pages import StatePages, int32_ids
from .replay_ring import InputRing


@dataclass(frozen=True, slots=True)
class RingPart:
    """Where one kind of inputs lies, and bytes of an element, as a kernel takes it for a
    constant."""

    first_frame: int
    first_offset: int
    first_rows: int
    rows: FrameRows
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A ring as a kernel takes it for a constant.

    Attributes:
        capacity, length: inputs that fit, and the same as a power of two.
        groups: of what is written along.
        write_row: channels of a token's writes.
        block_width: the width of the state as a power of two.
        values, writes: where they lie.
        scalars: where the numbers lie that there are one of per head, in their order.
    """

    capacity: int
    length: int
    groups: int
    write_row: int
    block_width: int
    values: RingPart
    writes: RingPart
    scalars: tuple[RingPart, ...]


def ring_arguments(pages: StatePages, ring: InputRing) -> dict:
    """Arguments of a kernel that describe the ring."""
    parts = {
        name: RingPart(
            place.first_frame,
            place.first_offset,
            place.first_rows,
            FrameRows.of(place, pages.frame_bytes),
            dtype.itemsize,
        )
        for name, (place, _, dtype) in ring.shapes(pages).items()
    }
    starts = ring.starts(pages)
    return {
        "p_starts": None if ring.ranks is None else int32_ids(starts, pages.arena.device),
        "DTYPE": TRITON_DTYPES[ring.dtype],
        "RING": Ring(
            capacity=ring.length,
            length=triton.next_power_of_2(ring.length),
            groups=ring.groups,
            write_row=starts[-1],
            block_width=triton.next_power_of_2(pages.format.width),
            values=parts["values"],
            writes=parts["writes"],
            scalars=tuple(parts[name] for name in ring.scalars),
        ),
    }


@triton.jit
def ring_pointers(p_arena, p_frames, element, PART: tl.constexpr, DTYPE: tl.constexpr):
    """Address of elements of a part of the ring."""
    p = locate(
        p_arena, p_frames, element * PART.size, PART.first_frame, PART.first_offset,
        PART.first_rows, constant(PART.rows),
    )  # fmt: skip
    return p.to(tl.pointer_type(DTYPE))


@triton.jit
def write_channels(p_starts, i_group, SEGMENT: tl.constexpr):
    """First channel of a group among those of a token's writes, and how many it has."""
    if p_starts is None:
        return i_group * SEGMENT.width, constant(SEGMENT.width)
    else:
        first = tl.load(p_starts + i_group)
        return first, tl.load(p_starts + i_group + 1) - first


@triton.jit
def load_values_kept(
    p_arena, p_frames, j, i_head, o_p, mask, RING: tl.constexpr, DTYPE: tl.constexpr,
    SEGMENT: tl.constexpr,
):  # fmt: skip
    """Values `o_p` of input `j` of a head, float32."""
    element = (j * SEGMENT.heads + i_head) * SEGMENT.head_dim + o_p
    p = ring_pointers(p_arena, p_frames, element, constant(RING.values), DTYPE)
    return tl.load(p, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_writes_kept(
    p_arena, p_frames, j, write_at, o_n, mask, RING: tl.constexpr, DTYPE: tl.constexpr
):
    """Channels `o_n` of what input `j` of a group is written along, float32."""
    element = j * RING.write_row + write_at + o_n
    p = ring_pointers(p_arena, p_frames, element, constant(RING.writes), DTYPE)
    return tl.load(p, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def scalar_pointers(p_arena, p_frames, j, i_head, PART: tl.constexpr, SEGMENT: tl.constexpr):
    """Address of the number of input `j` of a head."""
    return ring_pointers(p_arena, p_frames, j * SEGMENT.heads + i_head, PART, tl.float32)


@triton.jit
def keep_input(
    p_arena, p_frames, j, i_head, i_block, o_p, values, scalars, p_write, write_at, num_writes,
    RING: tl.constexpr, DTYPE: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Put a program's share of a token into place `j` of the ring.

    Args:
        o_p, values: positions and values of the tile, rounded to DTYPE.
        scalars: those of the head, as a tuple.
        p_write: what the group writes along, as it came.
        write_at, num_writes: of the group, from `write_channels`.
    """
    element = (j * SEGMENT.heads + i_head) * SEGMENT.head_dim + o_p
    p = ring_pointers(p_arena, p_frames, element, constant(RING.values), DTYPE)
    tl.store(p, values, mask=o_p < SEGMENT.head_dim)
    if i_block == 0:
        for i in tl.static_range(len(scalars)):
            p_scalar = scalar_pointers(
                p_arena, p_frames, j, i_head, constant(RING.scalars[i]), SEGMENT
            )
            tl.store(p_scalar, scalars[i])
        if i_head % (SEGMENT.heads // RING.groups) == 0:
            o_n = tl.arange(0, RING.block_width)
            mask = o_n < num_writes
            entry = tl.load(p_write + o_n, mask=mask, other=0.0).to(tl.float32)
            element_at = j * RING.write_row + write_at + o_n
            p_entry = ring_pointers(p_arena, p_frames, element_at, constant(RING.writes), DTYPE)
            tl.store(p_entry, rounded(entry, DTYPE), mask=mask)
