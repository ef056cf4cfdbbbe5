"""Where the parts of a state lie, as kernels need to know it.

A tile of a state is (NB, BLOCK, NU, E): blocks of values, values of a block, units of channels,
channels of a unit. A unit is what 16 bytes hold, so that it lies in one frame and is moved in one
go; where ranks are odd a unit is one channel.

A segment, and the place of a state, are tuples of plain numbers for the compiler; what differs from
layer to layer is a tuple for the kernel, AT: the arena, where codes and scales start, and the first
frame, offset and rows of the place.
"""

import triton
import triton.language as tl

from ..launch import has_native_float8, launch
from .pages import CODE_BYTES, StatePages, check_head_sizes, int32_ids

CODES = tuple(CODE_BYTES)
FLOAT32, FLOAT16, BFLOAT16, INT8, FLOAT8 = map(tl.constexpr, range(5))

CODE, HEAD_DIM, BLOCK, RANK, UNIT, NB, NU = map(tl.constexpr, range(7))
NATIVE_FLOAT8, STEPS, SIZE = map(tl.constexpr, (7, 8, 9))
ROW_BYTES, ROWS_PER_FRAME, FRAME_BYTES = map(tl.constexpr, range(3))
ARENA, CODES_START, SCALES_START, FIRST_FRAME, FIRST_OFFSET, FIRST_ROWS = map(
    tl.constexpr, range(6)
)

MAX_TILE = 8192
"""Elements of a tile that a program steps at once."""


def launch_segments(kernel, pages: StatePages, batch_size: int, **arguments) -> None:
    """Launch a kernel for every segment of the states: a program per sequence, head and tile.

    Args:
        arguments: those that are the same for all segments.
    """
    native = has_native_float8(pages.arena.device)
    for index, segment in enumerate(pages.segments):
        own = segment_arguments(pages, index, native_float8=native)
        grid = (batch_size, len(segment.heads), own.pop("blocks"))
        launch(kernel, grid, num_stages=1, **arguments, **own)


def segment_arguments(pages: StatePages, index: int, *, native_float8: bool) -> dict:
    """Arguments of a kernel that are the same for every recurrence, and `blocks`: tiles per
    head."""
    segment = pages.segments[index]
    check_head_sizes([segment], pages.head_dim)
    codes, scales = pages.starts[index]
    size = CODE_BYTES[segment.code]
    unit = 16 // size
    place = pages.place
    if segment.rank % unit or codes % 16 or (segment.code in ("int8", "float8") and scales % 16):
        unit = 1
    nu = triton.next_power_of_2(triton.cdiv(segment.rank, unit))
    num_blocks = pages.head_dim // pages.block
    nb = triton.next_power_of_2(num_blocks)
    whole = segment.code in ("float16", "float8")
    if not whole:
        while nb > 1 and nb * pages.block * nu * unit > MAX_TILE // 2:
            nb //= 2
    elements = nb * pages.block * nu * unit
    return {
        "p_arena": pages.arena,
        "p_heads": int32_ids(segment.heads, pages.arena.device),
        "first_frame": place.first_frame,
        "first_offset": place.first_offset,
        "first_rows": place.first_rows,
        "codes_start": codes,
        "scales_start": scales,
        "SEGMENT": (
            CODES.index(segment.code),
            pages.head_dim,
            pages.block,
            segment.rank,
            unit,
            nb,
            nu,
            native_float8,
            float(pages.steps_per_octave),
            size,
        ),
        "PLACE": (place.row_bytes, pages.frame_bytes // place.row_bytes, pages.frame_bytes),
        "blocks": triton.cdiv(num_blocks, nb),
        "num_warps": max(1, min(16, elements // 1024)),
    }


@triton.jit
def locate(p_arena, p_table, byte, first_frame, first_offset, first_rows, PLACE: tl.constexpr):
    """Address of bytes of a state, given the frames of its sequence."""
    row = byte // PLACE[ROW_BYTES]
    rest = byte % PLACE[ROW_BYTES]
    late = row - first_rows
    after = tl.maximum(late, 0)
    frame = tl.where(late >= 0, after // PLACE[ROWS_PER_FRAME] + 1, 0) + first_frame
    start = tl.where(
        late >= 0,
        (after % PLACE[ROWS_PER_FRAME]) * PLACE[ROW_BYTES],
        first_offset + row * PLACE[ROW_BYTES],
    )
    frame = tl.maximum(tl.load(p_table + frame), 0).to(tl.int64)
    return p_arena + (frame * PLACE[FRAME_BYTES] + start + rest)


@triton.jit
def tile_offsets(i_block, SEGMENT: tl.constexpr):
    """Value (NB, BLOCK, 1, 1) and first channel of a unit (1, 1, NU, 1), and their mask."""
    o_b = i_block * SEGMENT[NB] + tl.arange(0, SEGMENT[NB])
    o_p = o_b[:, None] * SEGMENT[BLOCK] + tl.arange(0, SEGMENT[BLOCK])[None, :]
    o_u = tl.arange(0, SEGMENT[NU]) * SEGMENT[UNIT]
    o_p = o_p[:, :, None, None]
    o_u = o_u[None, None, :, None]
    return o_p, o_u, (o_p < SEGMENT[HEAD_DIM]) & (o_u < SEGMENT[RANK])


@triton.jit
def state_pointers(at, p_frames, byte, SEGMENT: tl.constexpr, PLACE: tl.constexpr):
    """Address of bytes of a state; of the first byte of a unit, if units are moved in one go."""
    p = locate(at[ARENA], p_frames, byte, at[FIRST_FRAME], at[FIRST_OFFSET], at[FIRST_ROWS], PLACE)
    if SEGMENT[UNIT] > 1:
        p = tl.multiple_of(p, [16, 16, 16, 16])
    return p


@triton.jit
def code_pointers(at, p_frames, i_m, o_p, o_u, SEGMENT: tl.constexpr, PLACE: tl.constexpr):
    """Codes of a tile of head number `i_m` of a segment, (NB, BLOCK, NU, E); see `tile_offsets`."""
    element = (i_m * SEGMENT[HEAD_DIM] + o_p) * SEGMENT[RANK] + o_u
    byte = at[CODES_START] + element * SEGMENT[SIZE]
    p = state_pointers(at, p_frames, byte, SEGMENT, PLACE)
    o_e = tl.arange(0, SEGMENT[UNIT])[None, None, None, :]
    if SEGMENT[CODE] == FLOAT32:
        return p.to(tl.pointer_type(tl.float32)) + o_e
    elif SEGMENT[CODE] == BFLOAT16:
        return p.to(tl.pointer_type(tl.bfloat16)) + o_e
    elif SEGMENT[CODE] == FLOAT16:
        return p.to(tl.pointer_type(tl.float16)) + o_e
    elif SEGMENT[CODE] == INT8:
        return p.to(tl.pointer_type(tl.int8)) + o_e
    else:
        return p + o_e


@triton.jit
def exponent_pointer(at, p_frames, i_m, PLACE: tl.constexpr):
    """The one scale byte of a head in float16."""
    byte = at[SCALES_START] + i_m
    return locate(
        at[ARENA], p_frames, byte, at[FIRST_FRAME], at[FIRST_OFFSET], at[FIRST_ROWS], PLACE
    )


@triton.jit
def scale_pointers(at, p_frames, i_m, i_block, SEGMENT: tl.constexpr, PLACE: tl.constexpr):
    """Scale bytes of a tile, (NB, 1, NU, E) for int8 or (1, 1, NU, E) for float8, and their
    mask."""
    o_u = (tl.arange(0, SEGMENT[NU]) * SEGMENT[UNIT])[None, None, :, None]
    o_e = tl.arange(0, SEGMENT[UNIT])[None, None, None, :]
    mask = o_u < SEGMENT[RANK]
    if SEGMENT[CODE] == INT8:
        o_b = (i_block * SEGMENT[NB] + tl.arange(0, SEGMENT[NB]))[:, None, None, None]
        row = i_m * (SEGMENT[HEAD_DIM] // SEGMENT[BLOCK]) + o_b
        mask = mask & (o_b < SEGMENT[HEAD_DIM] // SEGMENT[BLOCK])
    else:
        row = i_m
    byte = at[SCALES_START] + row * SEGMENT[RANK] + o_u
    return state_pointers(at, p_frames, byte, SEGMENT, PLACE) + o_e, mask
