"""Device functions that read and write rings of inputs. Used by every kernel that replays.

The place of a part of a ring is a tuple of plain numbers: first frame, offset, rows, then those of
PLACE (see `state_tile`), last the size of an element.
"""

import triton
import triton.language as tl

from .numerics import TRITON_DTYPES
from .replay_ring import InputRing
from .state_pages import StatePages, int32_ids
from .state_tile import locate


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
