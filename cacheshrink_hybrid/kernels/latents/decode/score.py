"""Scores of rows of latents, in Triton: the first pass of `two_passes`.

One program holds BLOCK_N slots and BLOCK_M rows (token, head) of queries, and walks along the
channels: a piece of the rows is decoded, multiplied with what the queries ask of it, and forgotten.
Stored of a tile is how much each slot weighs beside its largest score, the weights' sum, and that
score. The grid is (row blocks, tiles, sequences).
"""

import triton
import triton.language as tl

from ...numerics import constant, product
from ..row_tile import load_gain, load_piece
from .slot_range import block_range, query_rows, row_pointers, seen_scores


@triton.jit
def store_weights(s, p_weights, p_peaks, p_sums, o_row, m_m, i_tile, num_tiles):
    """Store the weights (M, N) of scores in base 2, with their sums and the largest scores."""
    N: tl.constexpr = s.shape[1]
    peak = tl.max(s, 1)
    weight = tl.exp2(s - tl.where(peak == -float("inf"), 0.0, peak)[:, None])
    o_tile = o_row * num_tiles + i_tile
    p_w = p_weights + o_tile[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(p_w, weight.to(p_weights.dtype.element_ty), mask=m_m[:, None])
    tl.store(p_peaks + o_tile, peak, mask=m_m)
    tl.store(p_sums + o_tile, tl.sum(weight, 1), mask=m_m)


@triton.jit
def latent_score_fwd_kernel(
    p_asked,  # (B, T, blocks, H, PIECES, WIDTH)
    p_largest,  # (B, T, blocks, H, PIECES)
    p_of_mean,  # (B, T, blocks, H, BLOCK_SLOTS) or None
    p_offset,  # (B, T, H) or None
    p_arena,
    p_tables,
    p_frame_table,  # (B, max_frames)
    p_context_lens,  # (B,)
    p_query_lens,  # (B,) or None
    p_first_slots,  # (B,) or None
    p_weights,  # (B, T, H, tiles, BLOCK_N)
    p_peaks,  # (B, T, H, tiles), base 2
    p_sums,  # (B, T, H, tiles)
    p_gains,  # (B, tiles, BLOCK_N) or None
    num_tokens,
    num_blocks,
    max_frames,
    layer_offset,
    scale,
    from_slot,
    to_slot,
    HEADS: tl.constexpr,
    STRETCHES: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    NATIVE_FLOAT8: tl.constexpr,
    DOT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    i_seq = tl.program_id(2)
    i_tile = tl.program_id(1)
    block = from_slot // BLOCK_N + i_tile
    first_row = tl.program_id(0) * BLOCK_M
    i_token, i_head, m_m, context, new, first_seen = query_rows(
        p_context_lens, p_query_lens, p_first_slots, i_seq, first_row, num_tokens, HEADS, BLOCK_M
    )
    start, stop, first, last = block_range(
        context, new, tl.maximum(first_seen, from_slot), first_row, 0, 1, to_slot,
        HEADS, WINDOW, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if (block < start) | (block >= stop):
        return

    i_query = i_seq * num_tokens + i_token
    o_row = i_query.to(tl.int64) * HEADS + i_head
    o_asked = o_row
    if BLOCK_SLOTS > 0:
        i_block = (block * BLOCK_N - from_slot) // BLOCK_SLOTS
        o_asked = (i_query * num_blocks + i_block).to(tl.int64) * HEADS + i_head
    o_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = (o_n >= first) & (o_n < last)
    p_frames = p_frame_table + i_seq.to(tl.int64) * max_frames
    p_row, m_n = row_pointers(p_arena, p_frames, block, m_n, layer_offset, ROWS, BLOCK_N)
    gain = tl.full([BLOCK_N], 1.0, tl.float32)
    lost = tl.zeros([BLOCK_N], tl.float32)
    if ROWS.gain_byte >= 0:
        gain, lost = load_gain(p_row, m_n, p_tables, ROWS)
        o_gain = (i_seq * tl.num_programs(1) + i_tile).to(tl.int64) * BLOCK_N
        tl.store(p_gains + o_gain + tl.arange(0, BLOCK_N), gain, mask=m_n)

    # Slots come first: many of them and few heads fill a matrix unit, the other way round does not.
    s_plain = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    s_coded = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for i in tl.static_range(len(STRETCHES)):
        for at in range(STRETCHES[i].count):
            tile = load_piece(
                p_row,
                m_n,
                p_tables,
                at,
                constant(STRETCHES[i].piece),
                ROWS.even,
                NATIVE_FLOAT8,
                DOT,
            )
            o_piece = o_asked * PIECES + STRETCHES[i].first + at
            p_a = (
                p_asked + o_piece[:, None] * WIDTH + tl.arange(0, STRETCHES[i].piece.width)[None, :]
            )
            asked = tl.load(p_a, mask=m_m[:, None], other=0.0)
            largest = tl.load(p_largest + o_piece, mask=m_m, other=0.0)
            found = product(tile, tl.trans(asked), tl.zeros([BLOCK_N, BLOCK_M], tl.float32))
            found = found * (largest * STRETCHES[i].piece.unit)[None, :]
            if STRETCHES[i].piece.coded:
                s_coded += found
            else:
                s_plain += found
    s = tl.trans(s_plain + s_coded * gain[:, None])
    if BLOCK_SLOTS > 0:
        o_place = block * BLOCK_N % BLOCK_SLOTS + tl.arange(0, BLOCK_N)
        p_m = p_of_mean + o_asked[:, None] * BLOCK_SLOTS + o_place[None, :]
        s += tl.load(p_m, mask=m_m[:, None], other=0.0)
    if p_offset is not None:
        s += tl.load(p_offset + o_row, mask=m_m, other=0.0).to(tl.float32)[:, None]
    s = s * scale + lost[None, :]
    s = seen_scores(s, m_n, o_n, context - new + i_token, WINDOW, SOFTCAP)
    store_weights(s, p_weights, p_peaks, p_sums, o_row, m_m, i_tile, tl.num_programs(1))
