"""Device functions that read and write tiles of states. Used by every kernel that steps a state.

See `addresses` for what a tile is and where it lies.
"""

import triton
import triton.language as tl

from ...codecs import state_format
from ..numerics import float8_code, float8_value, rounded
from .addresses import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    INT8,
    channel_offsets,
    code_pointers,
    exponent_pointer,
    scale_pointers,
    tile_offsets,
    value_offsets,
)

# Device functions see numbers of modules only as these.
HALF_ZERO = tl.constexpr(state_format.HALF_ZERO)
HALF_EXPONENT = tl.constexpr(state_format.HALF_EXPONENT)
MAX_EXPONENT = tl.constexpr(state_format.MAX_EXPONENT)
SCALE_ZERO = tl.constexpr(state_format.SCALE_ZERO)
STEPS_PER_OCTAVE = tl.constexpr(state_format.STEPS_PER_OCTAVE)
LARGEST_INT8 = tl.constexpr(state_format.LARGEST_INT8)
LARGEST_FLOAT8 = tl.constexpr(state_format.LARGEST_FLOAT8)


@triton.jit
def load_state(at, p_frames, i_m, i_block, SEGMENT: tl.constexpr):
    """Tile (NB, BLOCK, NU, E) of the state of head number `i_m` of a segment, float32; zeros for a
    sequence whose first frame is -1."""
    o_p, o_u, mask = tile_offsets(i_block, SEGMENT)
    mask = tl.where(tl.load(p_frames) >= 0, mask, False)
    p = code_pointers(at, p_frames, i_m, o_p, o_u, SEGMENT)
    if SEGMENT.code == FLOAT16:
        exponent = tl.load(exponent_pointer(at, p_frames, i_m, SEGMENT)).to(tl.int32)
        exponent = exponent - (HALF_ZERO + HALF_EXPONENT)
        factor = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
        return tl.load(p, mask=mask, other=0.0).to(tl.float32) * factor
    elif SEGMENT.code >= INT8:
        p_scale, m_scale = scale_pointers(at, p_frames, i_m, i_block, SEGMENT)
        scale = tl.load(p_scale, mask=m_scale, other=0).to(tl.float32)
        scale = tl.exp2((scale - SCALE_ZERO) / STEPS_PER_OCTAVE)
        code = tl.load(p, mask=mask, other=0)
        if SEGMENT.code == INT8:
            return code.to(tl.float32) * scale
        else:
            return float8_value(code, SEGMENT.native_float8).to(tl.float32) * scale
    else:
        return tl.load(p, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _scale_byte(largest, TOP: tl.constexpr):
    """The smallest scale byte that keeps `largest` within TOP, and what to multiply with."""
    # Module constants stand right of tensors: the interpreter takes the type of the left operand.
    wanted = tl.log2(tl.maximum(largest, 1e-30) * (1.0 / TOP)) * STEPS_PER_OCTAVE + SCALE_ZERO
    scale = tl.minimum(tl.maximum(tl.ceil(wanted), 0.0), 255.0)
    return scale, tl.exp2((-scale + SCALE_ZERO) / STEPS_PER_OCTAVE)


@triton.jit
def round_half_even(x):
    """x rounded to whole numbers, |x| < 2^22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def store_state(state, at, p_frames, i_m, i_block, SEGMENT: tl.constexpr):
    """Code and write a tile; nothing for a sequence whose first frame is -1.

    `state` is zero where masked.
    """
    o_p, o_u, mask = tile_offsets(i_block, SEGMENT)
    held = tl.load(p_frames) >= 0
    mask = tl.where(held, mask, False)
    # Where a state is written to its own place, everyone has read the old scales by now.
    tl.debug_barrier()
    p = code_pointers(at, p_frames, i_m, o_p, o_u, SEGMENT)
    if SEGMENT.code == FLOAT32:
        tl.store(p, state, mask=mask)
    elif SEGMENT.code == BFLOAT16:
        tl.store(p, rounded(state, tl.bfloat16), mask=mask)
    elif SEGMENT.code == FLOAT16:
        largest = tl.max(tl.max(tl.max(tl.max(tl.abs(state), 3), 2), 1), 0)
        exponent = ((largest.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 126
        exponent = tl.minimum(tl.maximum(exponent, -MAX_EXPONENT), MAX_EXPONENT)
        exponent = tl.where(largest == 0.0, 0, exponent)
        factor = ((-exponent + (HALF_EXPONENT + 127)) << 23).to(tl.float32, bitcast=True)
        tl.store(p, (state * factor).to(tl.float16), mask=mask)
        p_exponent = exponent_pointer(at, p_frames, i_m, SEGMENT)
        tl.store(p_exponent, (exponent + HALF_ZERO).to(tl.uint8), mask=held)
    else:
        p_scale, m_scale = scale_pointers(at, p_frames, i_m, i_block, SEGMENT)
        if SEGMENT.code == INT8:
            largest = tl.max(tl.abs(state), 1)[:, None, :, :]
            scale, factor = _scale_byte(largest, LARGEST_INT8)
            x = tl.minimum(tl.maximum(round_half_even(state * factor), -LARGEST_INT8), LARGEST_INT8)
            tl.store(p, x.to(tl.int8), mask=mask)
        else:
            largest = tl.max(tl.max(tl.abs(state), 1), 0)[None, None, :, :]
            scale, factor = _scale_byte(largest, LARGEST_FLOAT8)
            x = tl.minimum(tl.maximum(state * factor, -LARGEST_FLOAT8), LARGEST_FLOAT8)
            tl.store(p, float8_code(x, 3, -6), mask=mask)
        tl.store(p_scale, scale.to(tl.uint8), mask=tl.where(held, m_scale, False))


@triton.jit
def load_vector(p, SEGMENT: tl.constexpr):
    """The first RANK channels of a vector, (1, 1, NU, E), float32."""
    o_n = channel_offsets(SEGMENT)
    x = tl.load(p + o_n, mask=o_n < SEGMENT.rank, other=0.0).to(tl.float32)
    return x[None, None, :, :]


@triton.jit
def load_values(p, i_block, SEGMENT: tl.constexpr):
    """Values of a tile, (NB, BLOCK, 1, 1), float32."""
    o_p, _, _ = tile_offsets(i_block, SEGMENT)
    return tl.load(p + o_p, mask=o_p < SEGMENT.head_dim, other=0.0).to(tl.float32)


@triton.jit
def store_values(y, p, i_block, SEGMENT: tl.constexpr):
    """Write (NB, BLOCK) values of a tile, in the type of what `p` points to."""
    o_p = value_offsets(i_block, SEGMENT)
    tl.store(p + o_p, rounded(y, p.dtype.element_ty), mask=o_p < SEGMENT.head_dim)


@triton.jit
def against_channels(state, vector):
    """Sums of a tile times a vector over the channels, (NB, BLOCK)."""
    return tl.sum(tl.sum(state * vector, 3), 2)
