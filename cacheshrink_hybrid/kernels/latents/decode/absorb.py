"""What queries ask of the channels of latents, in Triton: the first launch of `two_passes`.

Keys that are stored rotated are met by queries that are turned back to each block of slots and
absorbed. One program holds a piece of the channels of a key head's weights, and walks over rows
(sequence, token, block, head) in tiles of BLOCK_M. Other queries were brought into latent space
already. Either is stored with the largest number of its piece taken out, so that 16 bits hold it.
"""

import triton
import triton.language as tl

from ...numerics import product


@triton.jit
def _piece_channels(i_piece, STRETCHES: tl.constexpr):
    """First channel of a piece, how many it has, and the width of its tile."""
    channel = i_piece * 0
    valid = i_piece * 0
    width = i_piece * 0
    for i in tl.static_range(len(STRETCHES)):
        number = i_piece - STRETCHES[i].first
        own = (number >= 0) & (number < STRETCHES[i].count)
        of_piece = STRETCHES[i].channel + number * STRETCHES[i].piece.width
        channel = tl.where(own, of_piece, channel)
        valid = tl.where(own, STRETCHES[i].piece.valid, valid)
        width = tl.where(own, STRETCHES[i].piece.width, width)
    return channel, valid, width


@triton.jit
def _store_asked(x, p_asked, p_largest, o_row, i_piece, m_m, width, PIECES: tl.constexpr):
    """Store a piece (M, WIDTH) of what rows ask, and the largest number that was taken out."""
    WIDTH: tl.constexpr = x.shape[1]
    o_c = tl.arange(0, WIDTH)
    largest = tl.maximum(tl.max(tl.abs(x), 1), 1e-30)
    o_piece = o_row * PIECES + i_piece
    mask = m_m[:, None] & (o_c < width)[None, :]
    asked = (x / largest[:, None]).to(p_asked.dtype.element_ty)
    tl.store(p_asked + o_piece[:, None] * WIDTH + o_c[None, :], asked, mask=mask)
    tl.store(p_largest + o_piece, largest, mask=m_m)


@triton.jit
def latent_ask_fwd_kernel(
    p_query,  # (B, T, H, RANK)
    p_asked,  # (B, T, H, PIECES, WIDTH)
    p_largest,  # (B, T, H, PIECES)
    num_rows,
    RANK: tl.constexpr,
    STRETCHES: tl.constexpr,
    PIECES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    i_piece = tl.program_id(0)
    channel, valid, width = _piece_channels(i_piece, STRETCHES)
    o_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < num_rows
    o_row = o_m.to(tl.int64)
    o_c = tl.arange(0, WIDTH)
    mask = m_m[:, None] & (o_c < valid)[None, :]
    x = tl.load(p_query + o_row[:, None] * RANK + channel + o_c[None, :], mask=mask, other=0.0)
    _store_asked(x.to(tl.float32), p_asked, p_largest, o_row, i_piece, m_m, width, PIECES)


@triton.jit
def _turned_back(
    p_q,
    p_cos,
    p_sin,
    i_block,
    m_m,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Queries (M, BLOCK_D), float32, turned back to their blocks, and zeros behind their
    channels."""
    o_d = tl.arange(0, BLOCK_D)
    m_d = m_m[:, None] & (o_d < HEAD_DIM)[None, :]
    turns = m_m[:, None] & (o_d < 2 * HALF)[None, :]
    q = tl.load(p_q[:, None] + o_d[None, :], mask=m_d, other=0.0).to(tl.float32)
    first = o_d < HALF
    o_other = tl.where(first, o_d + HALF, o_d - HALF)
    other = tl.load(p_q[:, None] + o_other[None, :], mask=turns, other=0.0).to(tl.float32)
    o_angle = i_block[:, None] * HALF + (o_d % HALF)[None, :]
    cos = tl.load(p_cos + o_angle, mask=turns, other=1.0)
    sin = tl.load(p_sin + o_angle, mask=turns, other=0.0)
    return q * cos + other * tl.where(first[None, :], -sin, sin)


@triton.jit
def latent_absorb_fwd_kernel(
    p_query,  # (B, T, H, HEAD_DIM)
    p_up,  # (J, HEAD_DIM, RANK)
    p_mean,  # (J, BLOCK_SLOTS, HEAD_DIM)
    p_cos,  # (all blocks, HALF)
    p_sin,
    p_context_lens,  # (B,)
    p_asked,  # (B, T, blocks, H, PIECES, WIDTH)
    p_largest,  # (B, T, blocks, H, PIECES)
    p_of_mean,  # (B, T, blocks, H, BLOCK_SLOTS): products with the keys' mean
    num_rows,
    num_tokens,
    num_blocks,
    first_block,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    RANK: tl.constexpr,
    STRETCHES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    WINDOW: tl.constexpr,
    DOT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    # Behind the pieces of the channels come those of the places of a block.
    ALL: tl.constexpr = PIECES + (BLOCK_SLOTS + WIDTH - 1) // WIDTH
    i_head = tl.program_id(0) // ALL
    i_piece = tl.program_id(0) % ALL
    o_d = tl.arange(0, BLOCK_D)
    o_c = tl.arange(0, WIDTH)
    m_d = (o_d < HEAD_DIM)[:, None]
    channel, valid, width = _piece_channels(i_piece, STRETCHES)
    place = (i_piece - PIECES) * WIDTH + o_c
    if i_piece < PIECES:
        p_channel = p_up + (i_head * HEAD_DIM + o_d[:, None]) * RANK + channel + o_c[None, :]
        up = tl.load(p_channel, mask=m_d & (o_c < valid)[None, :], other=0.0).to(DOT)
    else:
        p_place = p_mean + (i_head * BLOCK_SLOTS + place[None, :]) * HEAD_DIM + o_d[:, None]
        up = tl.load(p_place, mask=m_d & (place < BLOCK_SLOTS)[None, :], other=0.0).to(DOT)

    for first in range(tl.program_id(1) * BLOCK_M, num_rows, tl.num_programs(1) * BLOCK_M):
        o_m = first + tl.arange(0, BLOCK_M)
        i_asked = o_m // GROUP  # sequence, token and block
        i_block = i_asked % num_blocks
        i_query = i_asked // num_blocks
        m_m = o_m < num_rows
        context = tl.load(p_context_lens + i_query // num_tokens, mask=m_m, other=0)
        first_slot = (first_block + i_block) * BLOCK_SLOTS
        m_m = m_m & (first_slot < context)
        if WINDOW > 0:
            m_m = m_m & (first_slot + BLOCK_SLOTS > context - num_tokens - WINDOW)
        if tl.max(m_m.to(tl.int32), 0) > 0:
            o_head = i_head * GROUP + o_m % GROUP
            p_q = p_query + (i_query.to(tl.int64) * HEADS + o_head) * HEAD_DIM
            q = _turned_back(p_q, p_cos, p_sin, first_block + i_block, m_m, HEAD_DIM, HALF, BLOCK_D)
            size = tl.maximum(tl.max(tl.abs(q), 1), 1e-30)
            x = tl.zeros([BLOCK_M, WIDTH], tl.float32)
            x = product((q / size[:, None]).to(DOT), up, x) * size[:, None]
            o_row = i_asked.to(tl.int64) * HEADS + o_head
            if i_piece < PIECES:
                _store_asked(x, p_asked, p_largest, o_row, i_piece, m_m, width, PIECES)
            else:
                m_place = m_m[:, None] & (place < BLOCK_SLOTS)[None, :]
                p_x = p_of_mean + o_row[:, None] * BLOCK_SLOTS + place[None, :]
                tl.store(p_x, x, mask=m_place)
