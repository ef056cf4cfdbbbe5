"""Device functions that bring queries and latents together: queries in the units of pieces, and
keys rebuilt from tiles of latents."""

import triton
import triton.language as tl

from ..numerics import product
from ..row_tile import CODED, IS_KEY, KEY_CHANNEL, KEY_INDEX, UNIT, VALID, WIDTH


@triton.jit
def query_piece(p_row, m_row, PIECE: tl.constexpr):
    """Channels of the queries that meet a piece, (M, WIDTH) float32, in the piece's unit."""
    o = tl.arange(0, PIECE[WIDTH])
    mask = m_row[:, None] & (o < PIECE[VALID])[None, :]
    q = tl.load(p_row[:, None] + (PIECE[KEY_CHANNEL] + o)[None, :], mask=mask, other=0.0)
    return q.to(tl.float32) * PIECE[UNIT]


@triton.jit
def query_part(p_row, m_row, FIRST: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """Channels [FIRST, FIRST + N) of the queries, (M, WIDTH) float32, zero from N on."""
    o = tl.arange(0, WIDTH)
    mask = m_row[:, None] & (o < N)[None, :]
    return tl.load(p_row[:, None] + (FIRST + o)[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def weight_part(
    p_up,
    RANK: tl.constexpr,
    FIRST: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Transposed block (channels of a piece, key channels [FIRST, FIRST + N)) of a key weight."""
    o_c = tl.arange(0, PIECE[WIDTH])
    o_d = tl.arange(0, BLOCK)
    mask = (o_c < PIECE[VALID])[:, None] & (o_d < N)[None, :]
    p = p_up + (FIRST + o_d)[None, :] * RANK + (PIECE[KEY_CHANNEL] + o_c)[:, None]
    return tl.load(p, mask=mask, other=0.0).to(tl.float32) * PIECE[UNIT]


@triton.jit
def bias_part(p_bias, FIRST: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    o_d = tl.arange(0, BLOCK)
    return tl.load(p_bias + FIRST + o_d, mask=o_d < N, other=0.0).to(tl.float32)


@triton.jit
def keys_part(
    tiles, weights, gain, bias, PIECES: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr
):
    """Rebuilt keys (N, BLOCK) of the key pieces among `tiles`."""
    plain = tl.zeros([N, BLOCK], tl.float32)
    coded = tl.zeros([N, BLOCK], tl.float32)
    for i in tl.static_range(len(PIECES)):
        if PIECES[i][IS_KEY]:
            if PIECES[i][CODED]:
                coded = product(tiles[i], weights[PIECES[i][KEY_INDEX]], coded)
            else:
                plain = product(tiles[i], weights[PIECES[i][KEY_INDEX]], plain)
    return plain + coded * gain[:, None] + bias[None, :]
