"""Device functions that read tiles of rows. Used by every kernel that reads latents.

A tile of a piece (`pieces`) holds numbers in units of the piece: values without the row's gain, and
for uniform8 counted in steps, so that codes become exact float16 numbers without arithmetic. Gains
multiply scores and probabilities, units multiply queries and results: nothing is spent per stored
element.
"""

import triton
import triton.language as tl

from ...codecs import levels
from ...codecs.row_layout import Kind
from ..numerics import constant, float8_value

# Device functions see numbers of modules only as these.
FLOAT32 = tl.constexpr(Kind.FLOAT32.number)
FLOAT16 = tl.constexpr(Kind.FLOAT16.number)
BFLOAT16 = tl.constexpr(Kind.BFLOAT16.number)
E4M3 = tl.constexpr(Kind.E4M3.number)
E5M2 = tl.constexpr(Kind.E5M2.number)
UNIFORM8 = tl.constexpr(Kind.UNIFORM8.number)

FIRST_GAIN = tl.constexpr(levels.FIRST_GAIN)


@triton.jit
def load_gain(p_row, m_row, p_tables, ROWS: tl.constexpr):
    """Gain of each row, (N,), and 0 or NaN for tokens that are kept or lost; a lost one's is 0."""
    gain = tl.load(p_row + ROWS.gain_byte, mask=m_row, other=0).to(tl.int32)
    gain = tl.load(p_tables + FIRST_GAIN + gain)
    return tl.where(gain == gain, gain, 0.0), gain - gain


@triton.jit
def load_bytes(p_row, m_row, FIRST: tl.constexpr, WIDTH: tl.constexpr, VALID: tl.constexpr):
    """Bytes [FIRST, FIRST + WIDTH) of each row, (N, WIDTH), zero from VALID on."""
    o_byte = tl.arange(0, WIDTH)
    p = p_row[:, None] + (FIRST + o_byte)[None, :]
    if VALID < WIDTH:
        return tl.load(p, mask=m_row[:, None] & (o_byte < VALID)[None, :], other=0)
    return tl.load(p, mask=m_row[:, None], other=0)


@triton.jit
def load_halves(p_row, m_row, i_head, PIECE: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr):
    """A piece of 16-bit numbers, or with EVEN of 32-bit ones, (N, WIDTH), zero from VALID on."""
    W: tl.constexpr = PIECE.width
    o = tl.arange(0, W)
    p_row += i_head * (PIECE.share * DTYPE.primitive_bitwidth // 8)
    if EVEN:
        # Loaded as what they are, they go from shared memory to the matrix unit as they are.
        p = (p_row + PIECE.planes[0].first_byte).to(tl.pointer_type(DTYPE))[:, None] + o[None, :]
        if PIECE.valid < W:
            return tl.load(p, mask=m_row[:, None] & (o < PIECE.valid)[None, :], other=0.0)
        return tl.load(p, mask=m_row[:, None], other=0.0)
    else:
        p = p_row[:, None] + (PIECE.planes[0].first_byte + 2 * o)[None, :]
        mask = m_row[:, None] & (o < PIECE.valid)[None, :]
        low = tl.load(p, mask=mask, other=0).to(tl.uint16)
        high = tl.load(p + 1, mask=mask, other=0).to(tl.uint16)
        return (low | (high << 8)).to(DTYPE, bitcast=True)


@triton.jit
def load_plane(p_row, m_row, i_head, PIECE: tl.constexpr, PLANE: tl.constexpr):
    """Numbers of 8, 4, 2 or 1 bits in a plane of a piece, (N, WIDTH), zero or a neighbour's from
    VALID on."""
    W: tl.constexpr = PIECE.width
    BITS: tl.constexpr = PLANE.bits
    if PIECE.share * BITS % 8 > 0:
        # The last channels of a head and the first ones of the next share a byte.
        o = tl.arange(0, W)
        channel = i_head * PIECE.share + o
        p = p_row[:, None] + (PLANE.first_byte + channel * BITS // 8)[None, :]
        mask = m_row[:, None] & (o < PIECE.valid)[None, :]
        byte = tl.load(p, mask=mask, other=0).to(tl.int32)
        number = (byte >> ((channel % (8 // BITS)) * BITS)[None, :]) & (2**BITS - 1)
    else:
        p_row += i_head * (PIECE.share * BITS // 8)
        number = load_bytes(p_row, m_row, PLANE.first_byte, W * BITS // 8, PLANE.num_bytes)
        if BITS < 8:
            number = number.to(tl.int32)
            number = tl.reshape(tl.join(number & 15, number >> 4), [number.shape[0], W * BITS // 4])
        if BITS < 4:
            number = tl.reshape(tl.join(number & 3, number >> 2), [number.shape[0], W * BITS // 2])
        if BITS < 2:
            number = tl.reshape(tl.join(number & 1, number >> 1), [number.shape[0], W])
    return number


@triton.jit
def load_codes(p_row, m_row, i_head, PIECE: tl.constexpr):
    """Codes of a piece, (N, WIDTH); those from VALID on mean nothing."""
    code = load_plane(p_row, m_row, i_head, PIECE, constant(PIECE.planes[0]))
    if len(PIECE.planes) > 1:
        high = load_plane(p_row, m_row, i_head, PIECE, constant(PIECE.planes[1]))
        code = code | (high << PIECE.planes[0].bits)
    return code


@triton.jit
def load_piece(
    p_row,
    m_row,
    p_tables,
    i_head,
    PIECE: tl.constexpr,
    EVEN: tl.constexpr,
    NATIVE_FLOAT8: tl.constexpr,
    DOT: tl.constexpr,
):
    """Tile (N, WIDTH) of a piece, in its units.

    Args:
        p_row: first byte of each row, (N,).
        m_row: rows to read; others give zeros or what a zero byte stands for.
        p_tables: `row_tables`.
        i_head: whose keys, where heads have keys of their own.
    """
    if PIECE.kind == FLOAT32:
        return load_halves(p_row, m_row, i_head, PIECE, True, tl.float32).to(DOT)
    elif PIECE.kind == FLOAT16:
        return load_halves(p_row, m_row, i_head, PIECE, EVEN, tl.float16).to(DOT)
    elif PIECE.kind == BFLOAT16:
        x = load_halves(p_row, m_row, i_head, PIECE, EVEN, tl.bfloat16)
        if tl.bfloat16 == DOT:
            return x
        else:
            return x.to(tl.float32).to(DOT)
    else:
        code = load_codes(p_row, m_row, i_head, PIECE)
        if PIECE.kind == E5M2:
            return (code.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(DOT)
        elif PIECE.kind == E4M3:
            return float8_value(code, NATIVE_FLOAT8).to(DOT)
        elif PIECE.kind == UNIFORM8:
            # 0x6400 is 1024 as a float16, whose last bit then counts 1; both differences are exact.
            x = (code.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True).to(DOT)
            return x - 1024.0 - 127.5
        else:
            return tl.load(p_tables + PIECE.levels.first + code).to(DOT)
