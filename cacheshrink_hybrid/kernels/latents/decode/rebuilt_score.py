"""Scores of keys that are rebuilt from rows of latents, in Triton: as `score`, for the heads that
read one key head.

One program holds BLOCK_N slots and BLOCK_M rows (token, head) of queries, and walks along the
channels: a piece of the rows is decoded, multiplied with the weights that make keys of it, and
forgotten. The grid is (key heads x row blocks, tiles, sequences): heads that read the same rows run
side by side.
"""

import triton
import triton.language as tl

from ...numerics import constant, product
from ..row_tile import load_gain, load_piece
from .key_tile import finished_keys, query_part, vector_part
from .score import store_weights
from .slot_range import block_range, query_rows, row_pointers, seen_scores


@triton.jit
def _with_piece(
    sums,
    tile,
    p_channel,
    PIECE: tl.constexpr,
    RANK: tl.constexpr,
    PARTS: tl.constexpr,
    DOT: tl.constexpr,
):
    """Parts of keys (N, BLOCK), and what the tile (N, WIDTH) of a piece adds to each.

    Args:
        p_channel: where the weights of the piece's first channel begin.
    """
    o_c = tl.arange(0, PIECE.width)
    found = ()
    for k in tl.static_range(len(PARTS)):
        o_d = tl.arange(0, PARTS[k].block)
        p_up = p_channel + (PARTS[k].first + o_d)[None, :] * RANK + o_c[:, None]
        mask = (o_c < PIECE.valid)[:, None] & (o_d < PARTS[k].channels)[None, :]
        up = tl.load(p_up, mask=mask, other=0.0)
        if PIECE.unit != 1.0:
            up = up.to(tl.float32) * PIECE.unit
        found = found + (product(tile, up.to(DOT), sums[k]),)
    return found


@triton.jit
def latent_rebuilt_score_fwd_kernel(
    p_query,  # (B, T, H, HEAD_DIM)
    p_up,  # (J, HEAD_DIM, RANK)
    p_bias,  # (J, HEAD_DIM)
    p_norm,  # (HEAD_DIM,) or None
    p_cos,  # (slots, ROTARY / 2) or None
    p_sin,
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
    max_frames,
    layer_offset,
    scale,
    from_slot,
    to_slot,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    RANK: tl.constexpr,
    PER_HEAD: tl.constexpr,
    EPSILON: tl.constexpr,
    PARTS: tl.constexpr,
    STRETCHES: tl.constexpr,
    ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    NATIVE_FLOAT8: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    i_seq = tl.program_id(2)
    i_tile = tl.program_id(1)
    i_key = tl.program_id(0) % (HEADS // GROUP)
    first_row = tl.program_id(0) // (HEADS // GROUP) * BLOCK_M
    block = from_slot // BLOCK_N + i_tile
    i_token, i_member, m_m, context, new, first_seen = query_rows(
        p_context_lens, p_query_lens, p_first_slots, i_seq, first_row, num_tokens, GROUP, BLOCK_M
    )
    start, stop, first, last = block_range(
        context, new, tl.maximum(first_seen, from_slot), first_row, 0, 1, to_slot,
        GROUP, WINDOW, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if (block < start) | (block >= stop):
        return

    o_row = (i_seq * num_tokens + i_token).to(tl.int64) * HEADS + i_key * GROUP + i_member
    o_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = (o_n >= first) & (o_n < last)
    p_frames = p_frame_table + i_seq.to(tl.int64) * max_frames
    p_row, m_n = row_pointers(p_arena, p_frames, block, m_n, layer_offset, ROWS, BLOCK_N)
    gain = tl.full([BLOCK_N], 1.0, tl.float32)
    lost = tl.zeros([BLOCK_N], tl.float32)
    if ROWS.gain_byte >= 0:
        gain, lost = load_gain(p_row, m_n, p_tables, ROWS)
        if i_key == 0:
            o_gain = (i_seq * tl.num_programs(1) + i_tile).to(tl.int64) * BLOCK_N
            tl.store(p_gains + o_gain + tl.arange(0, BLOCK_N), gain, mask=m_n)

    plain = ()
    coded = ()
    for k in tl.static_range(len(PARTS)):
        plain = plain + (tl.zeros([BLOCK_N, constant(PARTS[k].block)], tl.float32),)
        coded = coded + (tl.zeros([BLOCK_N, constant(PARTS[k].block)], tl.float32),)
    p_weight = p_up + i_key * HEAD_DIM * RANK
    for i in tl.static_range(len(STRETCHES)):
        for at in range(STRETCHES[i].count):
            which = at
            if PER_HEAD:
                which = i_key
            tile = load_piece(
                p_row,
                m_n,
                p_tables,
                which,
                constant(STRETCHES[i].piece),
                ROWS.even,
                NATIVE_FLOAT8,
                DOT,
            )
            p_channel = p_weight + STRETCHES[i].channel + at * STRETCHES[i].piece.width
            if STRETCHES[i].piece.coded:
                coded = _with_piece(
                    coded, tile, p_channel, constant(STRETCHES[i].piece), RANK, PARTS, DOT
                )
            else:
                plain = _with_piece(
                    plain, tile, p_channel, constant(STRETCHES[i].piece), RANK, PARTS, DOT
                )

    # Keys are divided by what makes them large, and queries scaled to at most 1, for 16 bits.
    large = tl.full([BLOCK_N], 1.0, tl.float32)
    if p_norm is None:
        large = tl.maximum(gain, 1.0)
    keys = ()
    for k in tl.static_range(len(PARTS)):
        bias = vector_part(p_bias + i_key * HEAD_DIM, constant(PARTS[k]))
        whole = (plain[k] + bias[None, :]) / large[:, None] + coded[k] * (gain / large)[:, None]
        keys = keys + (whole,)
    keys = finished_keys(keys, p_norm, p_cos, p_sin, o_n, m_n, HEAD_DIM, EPSILON, PARTS, BLOCK_N)
    largest = tl.full([BLOCK_M], 1e-30, tl.float32)
    parts = ()
    for k in tl.static_range(len(PARTS)):
        q = query_part(p_query + o_row * HEAD_DIM, m_m, constant(PARTS[k]))
        largest = tl.maximum(largest, tl.max(tl.abs(q), 1))
        parts = parts + (q,)
    s = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in tl.static_range(len(PARTS)):
        asked = (parts[k] / largest[:, None]).to(DOT)
        s = product(keys[k].to(DOT), tl.trans(asked), s)
    s = tl.trans(s) * large[None, :] * (largest * scale)[:, None] + lost[None, :]
    s = seen_scores(s, m_n, o_n, context - new + i_token, WINDOW, SOFTCAP)
    store_weights(s, p_weights, p_peaks, p_sums, o_row, m_m, i_tile, tl.num_programs(1))
