"""Mixing rows of latents by their weights, in Triton: the second pass of `two_passes`.

One program holds BLOCK_M rows (token, head) of queries and one piece of the values' channels, and
walks over its share of the slots in the tiles that were weighed: a tile of the piece is decoded and
mixed, and weights of different tiles are brought to one base as in an online softmax. The grid is
(pieces, row blocks, sequence x split): pieces of the same rows run side by side.
"""

import triton
import triton.language as tl

from ...numerics import constant, product
from ..row_tile import load_piece
from .slot_range import block_range, query_rows, row_pointers


@triton.jit
def _mixed_piece(
    p_arena,
    p_frames,
    p_tables,
    p_weights,
    p_peaks,
    p_sums,
    p_gains,
    o_row,
    m_m,
    start,
    stop,
    first,
    last,
    from_block,
    num_tiles,
    layer_offset,
    i_piece,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    NATIVE_FLOAT8: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Means (M, WIDTH) of a piece, and the log-sum-exp of the scores (M,), base 2."""
    o_block = tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, constant(PIECE.width)], tl.float32)
    peak = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for block in range(start, stop):
        o_n = block * BLOCK_N + o_block
        m_n = (o_n >= first) & (o_n < last)
        p_row, m_n = row_pointers(p_arena, p_frames, block, m_n, layer_offset, ROWS, BLOCK_N)
        tile = load_piece(p_row, m_n, p_tables, i_piece, PIECE, ROWS.even, NATIVE_FLOAT8, DOT)
        i_tile = block - from_block
        o_tile = o_row * num_tiles + i_tile
        own_peak = tl.load(p_peaks + o_tile, mask=m_m, other=-float("inf"))
        own_total = tl.load(p_sums + o_tile, mask=m_m, other=0.0)
        p_w = p_weights + o_tile[:, None] * BLOCK_N + o_block[None, :]
        weight = tl.load(p_w, mask=m_m[:, None], other=0.0).to(tl.float32)
        largest = tl.maximum(peak, own_peak)
        base = tl.where(largest == -float("inf"), 0.0, largest)
        kept = tl.exp2(peak - base)
        factor = tl.exp2(own_peak - base)
        weight = weight * factor[:, None]
        if PIECE.coded and ROWS.gain_byte >= 0:
            gain = tl.load(p_gains + i_tile * BLOCK_N + o_block, mask=m_n, other=0.0)
            weight = weight * gain[None, :]
        acc = product(weight.to(DOT), tile, acc * kept[:, None])
        total = total * kept + own_total * factor
        peak = largest
    norm = tl.where(total == 0.0, 1.0, total)
    return acc * (PIECE.unit / norm)[:, None], peak + tl.log2(norm)


@triton.jit
def latent_mix_fwd_kernel(
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
    p_out,  # (B, T, H, all splits, RV) float32
    p_lse,  # log-sum-exp (B, T, H, all splits) in base 2
    num_tokens,
    num_tiles,
    num_splits,
    first_split,
    all_splits,
    max_frames,
    layer_offset,
    from_slot,
    to_slot,
    HEADS: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    STRETCHES: tl.constexpr,
    ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    NATIVE_FLOAT8: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    i_piece = tl.program_id(0)
    i_seq = tl.program_id(2) // num_splits
    i_split = tl.program_id(2) % num_splits
    first_row = tl.program_id(1) * BLOCK_M
    i_token, i_head, m_m, context, new, first_seen = query_rows(
        p_context_lens, p_query_lens, p_first_slots, i_seq, first_row, num_tokens, HEADS, BLOCK_M
    )
    start, stop, first, last = block_range(
        context, new, tl.maximum(first_seen, from_slot), first_row, i_split, num_splits, to_slot,
        HEADS, WINDOW, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    o_row = (i_seq * num_tokens + i_token).to(tl.int64) * HEADS + i_head
    o_out = o_row * all_splits + first_split + i_split
    p_frames = p_frame_table + i_seq.to(tl.int64) * max_frames
    p_gain = p_gains
    if ROWS.gain_byte >= 0:
        p_gain = p_gains + i_seq.to(tl.int64) * num_tiles * BLOCK_N
    for i in tl.static_range(len(STRETCHES)):
        number = i_piece - STRETCHES[i].first
        if (number >= 0) & (number < STRETCHES[i].count):
            mean, lse = _mixed_piece(
                p_arena, p_frames, p_tables, p_weights, p_peaks, p_sums, p_gain, o_row, m_m,
                start, stop, first, last, from_slot // BLOCK_N, num_tiles, layer_offset, number,
                constant(STRETCHES[i].piece), ROWS, NATIVE_FLOAT8, DOT, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            if i_piece == 0:
                tl.store(p_lse + o_out, lse, mask=m_m)
            o_c = tl.arange(0, STRETCHES[i].piece.width)
            mask = m_m[:, None] & (o_c < STRETCHES[i].piece.valid)[None, :]
            channel = STRETCHES[i].channel + number * STRETCHES[i].piece.width
            p_o = p_out + o_out[:, None] * VALUE_WIDTH + channel + o_c[None, :]
            tl.store(p_o, mean, mask=mask)
