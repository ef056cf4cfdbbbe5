"""Device functions that read and write tiles of states. Used by every kernel that steps a state.

A tile is (NB, BLOCK, NU, E): blocks of values, values of a block, units of channels, channels of a
unit. A unit is what 16 bytes hold, so that it lies in one frame and is moved in one go; where ranks
are odd a unit is one channel.
"""

import triton
import triton.language as tl

from .numerics import float8_code, float8_value, rounded
from .state_pages import (
    CODE_BYTES,
    EXPONENT_ZERO,
    HALF_EXPONENT,
    LARGEST_FLOAT8,
    LARGEST_INT8,
    MAX_EXPONENT,
    SCALE_ZERO,
    StatePages,
    check_head_sizes,
    int32_ids,
)

CODES = tuple(CODE_BYTES)
FLOAT32, FLOAT16, BFLOAT16, INT8, FLOAT8 = map(tl.constexpr, range(5))

# A segment, and the place of a state, as tuples of plain numbers for the kernel.
CODE, HEAD_DIM, BLOCK, RANK, UNIT, NB, NU = map(tl.constexpr, range(7))
NATIVE_FLOAT8, STEPS = map(tl.constexpr, (7, 8))
ROW_BYTES, ROWS_PER_FRAME, FRAME_BYTES = map(tl.constexpr, range(3))

EXP_ZERO = tl.constexpr(EXPONENT_ZERO)
HALF = tl.constexpr(HALF_EXPONENT)
MAX_EXP = tl.constexpr(MAX_EXPONENT)
ZERO = tl.constexpr(SCALE_ZERO)
TOP_INT8 = tl.constexpr(LARGEST_INT8)
TOP_FLOAT8 = tl.constexpr(LARGEST_FLOAT8)

MAX_TILE = 8192
"""Elements of a tile that a program steps at once."""


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
def _code_pointers(
    p_arena,
    p_table,
    i_m,
    o_p,
    o_u,
    codes_start,
    first_frame,
    first_offset,
    first_rows,
    DTYPE: tl.constexpr,
    SIZE: tl.constexpr,
    SEGMENT: tl.constexpr,
    PLACE: tl.constexpr,
):
    element = (i_m * SEGMENT[HEAD_DIM] + o_p) * SEGMENT[RANK] + o_u
    byte = codes_start + element * SIZE
    p = locate(p_arena, p_table, byte, first_frame, first_offset, first_rows, PLACE)
    if SEGMENT[UNIT] > 1:
        p = tl.multiple_of(p, [16, 16, 16, 16])
    return p.to(tl.pointer_type(DTYPE)) + tl.arange(0, SEGMENT[UNIT])[None, None, None, :]


@triton.jit
def _scale_pointers(
    p_arena,
    p_table,
    i_m,
    i_block,
    scales_start,
    first_frame,
    first_offset,
    first_rows,
    SEGMENT: tl.constexpr,
    PLACE: tl.constexpr,
):
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
    byte = scales_start + row * SEGMENT[RANK] + o_u
    p = locate(p_arena, p_table, byte, first_frame, first_offset, first_rows, PLACE)
    if SEGMENT[UNIT] > 1:
        p = tl.multiple_of(p, [16, 16, 16, 16])
    return p + o_e, mask


@triton.jit
def load_state(
    p_arena,
    p_table,
    i_m,
    i_block,
    codes_start,
    scales_start,
    first_frame,
    first_offset,
    first_rows,
    SEGMENT: tl.constexpr,
    PLACE: tl.constexpr,
):
    """Tile (NB, BLOCK, NU, E) of the state of head number `i_m` of a segment, float32; zeros for a
    sequence whose first frame is -1."""
    o_p, o_u, mask = tile_offsets(i_block, SEGMENT)
    mask = tl.where(tl.load(p_table) >= 0, mask, False)
    if SEGMENT[CODE] == FLOAT32:
        p = _code_pointers(
            p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset, first_rows,
            tl.float32, 4, SEGMENT, PLACE,
        )  # fmt: skip
        return tl.load(p, mask=mask, other=0.0)
    elif SEGMENT[CODE] == BFLOAT16:
        p = _code_pointers(
            p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset, first_rows,
            tl.bfloat16, 2, SEGMENT, PLACE,
        )  # fmt: skip
        return tl.load(p, mask=mask, other=0.0).to(tl.float32)
    elif SEGMENT[CODE] == FLOAT16:
        p = _code_pointers(
            p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset, first_rows,
            tl.float16, 2, SEGMENT, PLACE,
        )  # fmt: skip
        p_scale = locate(
            p_arena, p_table, scales_start + i_m, first_frame, first_offset, first_rows, PLACE
        )
        exponent = tl.load(p_scale).to(tl.int32) - (EXP_ZERO + HALF)
        factor = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
        return tl.load(p, mask=mask, other=0.0).to(tl.float32) * factor
    else:
        p_scale, m_scale = _scale_pointers(
            p_arena, p_table, i_m, i_block, scales_start, first_frame, first_offset, first_rows,
            SEGMENT, PLACE,
        )  # fmt: skip
        scale = tl.load(p_scale, mask=m_scale, other=0).to(tl.float32)
        scale = tl.exp2((scale - ZERO) / SEGMENT[STEPS])
        if SEGMENT[CODE] == INT8:
            p = _code_pointers(
                p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset,
                first_rows, tl.int8, 1, SEGMENT, PLACE,
            )  # fmt: skip
            return tl.load(p, mask=mask, other=0).to(tl.float32) * scale
        else:
            p = _code_pointers(
                p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset,
                first_rows, tl.uint8, 1, SEGMENT, PLACE,
            )  # fmt: skip
            code = tl.load(p, mask=mask, other=0)
            return float8_value(code, SEGMENT[NATIVE_FLOAT8]).to(tl.float32) * scale


@triton.jit
def _scale_byte(largest, TOP: tl.constexpr, PER_OCTAVE: tl.constexpr):
    """The smallest scale byte that keeps `largest` within TOP, and what to multiply with."""
    # Module constants stand right of tensors: the interpreter takes the type of the left operand.
    wanted = tl.log2(tl.maximum(largest, 1e-30) * (1.0 / TOP)) * PER_OCTAVE + ZERO
    scale = tl.minimum(tl.maximum(tl.ceil(wanted), 0.0), 255.0)
    return scale, tl.exp2((-scale + ZERO) / PER_OCTAVE)


@triton.jit
def round_half_even(x):
    """x rounded to whole numbers, |x| < 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def store_state(
    state,
    p_arena,
    p_table,
    i_m,
    i_block,
    codes_start,
    scales_start,
    first_frame,
    first_offset,
    first_rows,
    SEGMENT: tl.constexpr,
    PLACE: tl.constexpr,
):
    """Code and write a tile; nothing for a sequence whose first frame is -1.

    `state` is zero where masked.
    """
    o_p, o_u, mask = tile_offsets(i_block, SEGMENT)
    held = tl.load(p_table) >= 0
    mask = tl.where(held, mask, False)
    # Where a state is written to its own place, everyone has read the old scales by now.
    tl.debug_barrier()
    if SEGMENT[CODE] == FLOAT32:
        p = _code_pointers(
            p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset, first_rows,
            tl.float32, 4, SEGMENT, PLACE,
        )  # fmt: skip
        tl.store(p, state, mask=mask)
    elif SEGMENT[CODE] == BFLOAT16:
        p = _code_pointers(
            p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset, first_rows,
            tl.bfloat16, 2, SEGMENT, PLACE,
        )  # fmt: skip
        tl.store(p, rounded(state, tl.bfloat16), mask=mask)
    elif SEGMENT[CODE] == FLOAT16:
        p = _code_pointers(
            p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset, first_rows,
            tl.float16, 2, SEGMENT, PLACE,
        )  # fmt: skip
        largest = tl.max(tl.max(tl.max(tl.max(tl.abs(state), 3), 2), 1), 0)
        exponent = ((largest.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 126
        exponent = tl.minimum(tl.maximum(exponent, -MAX_EXP), MAX_EXP)
        exponent = tl.where(largest == 0.0, 0, exponent)
        factor = ((-exponent + (HALF + 127)) << 23).to(tl.float32, bitcast=True)
        tl.store(p, (state * factor).to(tl.float16), mask=mask)
        p_scale = locate(
            p_arena, p_table, scales_start + i_m, first_frame, first_offset, first_rows, PLACE
        )
        tl.store(p_scale, (exponent + EXP_ZERO).to(tl.uint8), mask=held)
    else:
        p_scale, m_scale = _scale_pointers(
            p_arena, p_table, i_m, i_block, scales_start, first_frame, first_offset, first_rows,
            SEGMENT, PLACE,
        )  # fmt: skip
        if SEGMENT[CODE] == INT8:
            largest = tl.max(tl.abs(state), 1)[:, None, :, :]
            scale, factor = _scale_byte(largest, TOP_INT8, SEGMENT[STEPS])
            x = tl.minimum(tl.maximum(round_half_even(state * factor), -TOP_INT8), TOP_INT8)
            p = _code_pointers(
                p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset,
                first_rows, tl.int8, 1, SEGMENT, PLACE,
            )  # fmt: skip
            tl.store(p, x.to(tl.int8), mask=mask)
        else:
            largest = tl.max(tl.max(tl.abs(state), 1), 0)[None, None, :, :]
            scale, factor = _scale_byte(largest, TOP_FLOAT8, SEGMENT[STEPS])
            x = tl.minimum(tl.maximum(state * factor, -TOP_FLOAT8), TOP_FLOAT8)
            p = _code_pointers(
                p_arena, p_table, i_m, o_p, o_u, codes_start, first_frame, first_offset,
                first_rows, tl.uint8, 1, SEGMENT, PLACE,
            )  # fmt: skip
            tl.store(p, float8_code(x), mask=mask)
        tl.store(p_scale, scale.to(tl.uint8), mask=tl.where(held, m_scale, False))


@triton.jit
def load_vector(p, SEGMENT: tl.constexpr):
    """The first RANK channels of a vector, (1, 1, NU, E), float32."""
    o_n = tl.arange(0, SEGMENT[NU])[:, None] * SEGMENT[UNIT] + tl.arange(0, SEGMENT[UNIT])[None, :]
    x = tl.load(p + o_n, mask=o_n < SEGMENT[RANK], other=0.0).to(tl.float32)
    return x[None, None, :, :]


@triton.jit
def load_values(p, i_block, SEGMENT: tl.constexpr):
    """Values of a tile, (NB, BLOCK, 1, 1), float32."""
    o_p, _, _ = tile_offsets(i_block, SEGMENT)
    return tl.load(p + o_p, mask=o_p < SEGMENT[HEAD_DIM], other=0.0).to(tl.float32)


@triton.jit
def store_values(y, p, i_block, DTYPE: tl.constexpr, SEGMENT: tl.constexpr):
    """Write (NB, BLOCK) values of a tile."""
    o_b = i_block * SEGMENT[NB] + tl.arange(0, SEGMENT[NB])
    o_p = o_b[:, None] * SEGMENT[BLOCK] + tl.arange(0, SEGMENT[BLOCK])[None, :]
    tl.store(p + o_p, rounded(y, DTYPE), mask=o_p < SEGMENT[HEAD_DIM])


@triton.jit
def against_channels(state, vector):
    """Sums of a tile times a vector over the channels, (NB, BLOCK)."""
    return tl.sum(tl.sum(state * vector, 3), 2)
