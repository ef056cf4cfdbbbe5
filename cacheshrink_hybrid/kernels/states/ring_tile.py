"""Device functions that read and write rings of inputs. Used by every kernel that replays.

The place of a part of a ring is a tuple of plain numbers: first frame, offset, rows, then those of
PLACE (see `tile`), last the size of an element.
"""

import triton
import triton.language as tl

from ..numerics import TRITON_DTYPES, rounded
from .addresses import HEAD_DIM, locate
from .pages import StatePages, int32_ids
from .replay_ring import InputRing


@triton.jit
def ring_pointers(p_arena, p_table, element, RING: tl.constexpr, DTYPE: tl.constexpr):
    """Address of elements of a part of the ring."""
    PLACE: tl.constexpr = (RING[3], RING[4], RING[5])
    byte = element * RING[6]
    p = locate(p_arena, p_table, byte, RING[0], RING[1], RING[2], PLACE)
    return p.to(tl.pointer_type(DTYPE))


@triton.jit
def write_channels(p_starts, i_group, WIDTH: tl.constexpr):
    """First channel of a group among those of a token's writes, and how many it has."""
    if p_starts is None:
        return i_group * WIDTH, WIDTH
    else:
        first = tl.load(p_starts + i_group)
        return first, tl.load(p_starts + i_group + 1) - first


@triton.jit
def load_values_kept(
    p_arena, p_frames, j, i_head, o_p, mask, HEADS: tl.constexpr, SEGMENT: tl.constexpr,
    VALUES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Values `o_p` of input `j` of a head, float32."""
    element = (j * HEADS + i_head) * SEGMENT[HEAD_DIM] + o_p
    p = ring_pointers(p_arena, p_frames, element, VALUES, DTYPE)
    return tl.load(p, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_writes_kept(
    p_arena, p_frames, j, write_at, o_n, mask, WRITE_ROW: tl.constexpr, WRITES: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Channels `o_n` of what input `j` of a group is written along, float32."""
    element = j * WRITE_ROW + write_at + o_n
    p = ring_pointers(p_arena, p_frames, element, WRITES, DTYPE)
    return tl.load(p, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_number_kept(p_arena, p_frames, j, i_head, HEADS: tl.constexpr, NUMBERS: tl.constexpr):
    """The number of input `j` of a head, float32."""
    return tl.load(ring_pointers(p_arena, p_frames, j * HEADS + i_head, NUMBERS, tl.float32))


@triton.jit
def keep_input(
    p_arena, p_frames, j, i_head, i_block, o_p, values, numbers, p_write, write_at,
    num_writes, HEADS: tl.constexpr, GROUPS: tl.constexpr, WRITE_ROW: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, VALUES: tl.constexpr, WRITES: tl.constexpr, NUMBERS: tl.constexpr,
    DTYPE: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Put a program's share of a token into place `j` of the ring.

    Args:
        o_p, values: positions and values of the tile, rounded to DTYPE.
        numbers: those of the head, as a tuple; NUMBERS says where each goes.
        p_write: what the group writes along, as it came.
        write_at, num_writes: of the group, from `write_channels`.
    """
    element = (j * HEADS + i_head) * SEGMENT[HEAD_DIM] + o_p
    p = ring_pointers(p_arena, p_frames, element, VALUES, DTYPE)
    tl.store(p, values, mask=o_p < SEGMENT[HEAD_DIM])
    if i_block == 0:
        for i in tl.static_range(len(NUMBERS)):
            at = j * HEADS + i_head
            tl.store(ring_pointers(p_arena, p_frames, at, NUMBERS[i], tl.float32), numbers[i])
        if i_head % (HEADS // GROUPS) == 0:
            o_n = tl.arange(0, BLOCK_WIDTH)
            mask = o_n < num_writes
            entry = tl.load(p_write + o_n, mask=mask, other=0.0).to(tl.float32)
            element_at = j * WRITE_ROW + write_at + o_n
            p_entry = ring_pointers(p_arena, p_frames, element_at, WRITES, DTYPE)
            tl.store(p_entry, rounded(entry, DTYPE), mask=mask)


def ring_arguments(pages: StatePages, ring: InputRing) -> dict:
    """Arguments of a kernel that describe the ring."""
    places = {}
    for name, (place, _, dtype) in ring.shapes(pages).items():
        places[name.upper()] = (
            place.first_frame,
            place.first_offset,
            place.first_rows,
            place.row_bytes,
            pages.frame_bytes // place.row_bytes,
            pages.frame_bytes,
            dtype.itemsize,
        )
    starts = ring.starts(pages)
    equal = ring.ranks is None
    return {
        **places,
        "p_starts": None if equal else int32_ids(starts, pages.arena.device),
        "WRITE_ROW": starts[-1],
        "DTYPE": TRITON_DTYPES[ring.dtype],
        "CAPACITY": ring.length,
        "LENGTH": triton.next_power_of_2(ring.length),
        "GROUPS": ring.groups,
        "HEADS": pages.num_heads,
        "WIDTH": pages.width,
    }
