"""Device functions that bring queries and latents together: queries in the units of pieces, and
keys rebuilt from tiles of latents.

The D channels of a key go in *parts*: where keys are rotated, the first and the second
halves of the rotated channels, which turn into each other, and then the rest, if there is any.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from ...numerics import constant, product
from ..pieces import MIN_WIDTH


@dataclass(frozen=True, slots=True)
class Part:
    """A part as a kernel takes it for a constant: first channel, channels, their number as a power
    of two, and whether they turn."""

    first: int
    channels: int
    block: int
    turns: bool


def key_parts(head_dim: int, rotary_dim: int) -> tuple[Part, ...]:
    """Parts of a key."""
    half = rotary_dim // 2
    cuts = [(0, half, True), (half, half, True), (2 * half, head_dim - 2 * half, False)]
    return tuple(
        Part(first, channels, max(MIN_WIDTH, triton.next_power_of_2(channels)), turns)
        for first, channels, turns in cuts
        if channels
    )


@triton.jit
def query_piece(p_row, m_row, PIECE: tl.constexpr):
    """Channels of the queries that meet a piece, (M, WIDTH) float32, in the piece's unit."""
    o = tl.arange(0, PIECE.width)
    mask = m_row[:, None] & (o < PIECE.valid)[None, :]
    q = tl.load(p_row[:, None] + (PIECE.key_channel + o)[None, :], mask=mask, other=0.0)
    return q.to(tl.float32) * PIECE.unit


@triton.jit
def query_part(p_row, m_row, PART: tl.constexpr):
    """A part of the queries, (M, BLOCK) float32, zero behind its channels."""
    o = tl.arange(0, PART.block)
    mask = m_row[:, None] & (o < PART.channels)[None, :]
    return tl.load(p_row[:, None] + (PART.first + o)[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def weight_part(
    p_up, RANK: tl.constexpr, PART: tl.constexpr, PIECES: tl.constexpr, DOT: tl.constexpr
):
    """Transposed blocks (channels of a piece, channels of a part) of a key weight, by key piece."""
    o_d = tl.arange(0, PART.block)
    blocks = ()
    for i in tl.static_range(len(PIECES)):
        if PIECES[i].is_key:
            o_c = tl.arange(0, PIECES[i].width)
            mask = (o_c < PIECES[i].valid)[:, None] & (o_d < PART.channels)[None, :]
            o_up = (PART.first + o_d)[None, :] * RANK + (PIECES[i].key_channel + o_c)[:, None]
            block = tl.load(p_up + o_up, mask=mask, other=0.0).to(tl.float32)
            blocks = blocks + ((block * PIECES[i].unit).to(DOT),)
    return blocks


@triton.jit
def vector_part(p, PART: tl.constexpr):
    """A part of a vector over a key's channels, (BLOCK,) float32."""
    o_d = tl.arange(0, PART.block)
    return tl.load(p + PART.first + o_d, mask=o_d < PART.channels, other=0.0).to(tl.float32)


@triton.jit
def _key_part(
    tiles,
    weights,
    bias,
    gain,
    inverse,
    PIECES: tl.constexpr,
    N: tl.constexpr,
    PART: tl.constexpr,
):
    """A part of the keys (N, BLOCK) that the key pieces among `tiles` stand for: `inverse` times
    what is no code, and `gain` times what codes stand for."""
    plain = tl.zeros([N, constant(PART.block)], tl.float32)
    coded = tl.zeros([N, constant(PART.block)], tl.float32)
    for i in tl.static_range(len(PIECES)):
        if PIECES[i].is_key:
            if PIECES[i].coded:
                coded = product(tiles[i], weights[PIECES[i].key_index], coded)
            else:
                plain = product(tiles[i], weights[PIECES[i].key_index], plain)
    return (plain + bias[None, :]) * inverse[:, None] + coded * gain[:, None]


@triton.jit
def rebuilt_keys(
    tiles,
    weights,
    biases,
    gain,
    large,
    p_norm,
    p_cos,
    p_sin,
    o_n,
    m_n,
    HEAD_DIM: tl.constexpr,
    EPSILON: tl.constexpr,
    PARTS: tl.constexpr,
    PIECES: tl.constexpr,
    N: tl.constexpr,
):
    """Keys of a tile of latents, as `finished_keys` gives them; divided by `large`, so that 16 bits
    hold them."""
    keys = ()
    inverse = 1.0 / large
    gain = gain * inverse
    for i in tl.static_range(len(PARTS)):
        part = _key_part(tiles, weights[i], biases[i], gain, inverse, PIECES, N, constant(PARTS[i]))
        keys = keys + (part,)
    return finished_keys(keys, p_norm, p_cos, p_sin, o_n, m_n, HEAD_DIM, EPSILON, PARTS, N)


@triton.jit
def finished_keys(
    keys,
    p_norm,
    p_cos,
    p_sin,
    o_n,
    m_n,
    HEAD_DIM: tl.constexpr,
    EPSILON: tl.constexpr,
    PARTS: tl.constexpr,
    N: tl.constexpr,
):
    """Keys in parts, (N, BLOCK) float32 each, normalised and rotated by their slots `o_n`."""
    if p_norm is not None:
        square = tl.full([N], EPSILON * HEAD_DIM, tl.float32)
        for i in tl.static_range(len(PARTS)):
            square += tl.sum(keys[i] * keys[i], 1)
        shrink = tl.sqrt_rn(HEAD_DIM / square)[:, None]
        normed = ()
        for i in tl.static_range(len(PARTS)):
            gains = vector_part(p_norm, constant(PARTS[i]))
            normed = normed + (keys[i] * shrink * gains[None, :],)
        keys = normed
    if PARTS[0].turns:
        o_d = tl.arange(0, PARTS[0].block)
        o_angle = o_n[:, None] * PARTS[0].channels + o_d[None, :]
        m_angle = m_n[:, None] & (o_d < PARTS[0].channels)[None, :]
        cos = tl.load(p_cos + o_angle, mask=m_angle, other=0.0).to(tl.float32)
        sin = tl.load(p_sin + o_angle, mask=m_angle, other=0.0).to(tl.float32)
        first, second = keys[0], keys[1]
        turned = (first * cos - second * sin, second * cos + first * sin)
        for i in tl.static_range(2, len(PARTS)):
            turned = turned + (keys[i],)
        keys = turned
    return keys
