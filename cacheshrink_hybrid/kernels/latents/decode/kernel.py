"""`latent_decode` and `latent_prefill` in one launch, in Triton.

One program holds BLOCK_M rows (token, head) of queries and walks over its share of the slots in
tiles of BLOCK_N, with an online softmax in powers of two. A tile of latents is loaded once and
serves as keys and as values, and all that it is mixed to stays in registers; rows that are too wide
for that are read in two passes (`two_passes`). The grid is (key heads that read by themselves,
sequence x split, row blocks): heads that read the same slots run side by side, and the second one
finds them in the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import has_native_float8, launch, num_multiprocessors
from ...numerics import LOG2_E, TRITON_DTYPES, constant, dot_dtype, product, rounded
from ..paged_rows import PagedRows
from ..pieces import FramedRows, pieces_of
from ..row_tile import load_gain, load_piece
from .key_tile import key_parts, query_part, query_piece, rebuilt_keys, vector_part, weight_part
from .merge import merge_splits
from .read import LatentRead
from .slot_range import block_range, query_rows, row_pointers, seen_scores
from .tiles import Tiles, choose_splits, choose_tiles, fitted


@triton.jit
def latent_decode_fwd_kernel(
    p_query,  # (B, T, H, K)
    p_offset,  # (B, T, H) or None
    p_arena,
    p_tables,
    p_frame_table,  # (B, max_frames)
    p_context_lens,  # (B,)
    p_query_lens,  # (B,) or None
    p_first_slots,  # (B,) or None
    p_up,  # (J, D, RANK) or None
    p_bias,  # (J, D) or None
    p_norm,  # (D,) or None
    p_cos,  # (slots, ROTARY / 2) or None
    p_sin,
    p_out,  # (B, T, H, RV), or (B, T, H, splits, RV) float32
    p_lse,  # log-sum-exp (B, T, H), or (B, T, H, splits) in base 2
    num_tokens,
    num_splits,
    max_frames,
    layer_offset,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    RANK: tl.constexpr,
    EPSILON: tl.constexpr,
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    NATIVE_FLOAT8: tl.constexpr,
    OUT: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    i_seq = tl.program_id(1) // num_splits
    i_split = tl.program_id(1) % num_splits
    i_head = tl.program_id(0)

    first_row = tl.program_id(2) * BLOCK_M
    i_token, i_member, m_m, context, new, first_seen = query_rows(
        p_context_lens, p_query_lens, p_first_slots, i_seq, first_row, num_tokens, GROUP, BLOCK_M
    )
    o_row = (i_seq * num_tokens + i_token).to(tl.int64) * HEADS + i_head * GROUP + i_member
    position = context - new + i_token  # slot of each row's own token
    start, stop, first, last = block_range(
        context, new, first_seen, first_row, i_split, num_splits, max_frames * ROWS.frame_tokens,
        GROUP, WINDOW, BLOCK_M, BLOCK_N,
    )  # fmt: skip

    # Queries are scaled to at most 1, so that 16 bits hold them whatever they are.
    p_q = p_query + o_row * QUERY_WIDTH
    largest = tl.full([BLOCK_M], 1e-30, tl.float32)
    queries = ()
    if RANK == 0:
        for i in tl.static_range(len(PIECES)):
            if PIECES[i].is_key:
                q = query_piece(p_q, m_m, constant(PIECES[i]))
                largest = tl.maximum(largest, tl.max(tl.abs(q), 1))
                queries = queries + (q,)
    parts = ()
    for i in tl.static_range(len(PARTS)):
        q = query_part(p_q, m_m, constant(PARTS[i]))
        largest = tl.maximum(largest, tl.max(tl.abs(q), 1))
        parts = parts + (q,)
    ups = ()
    biases = ()
    if RANK > 0:
        for i in tl.static_range(len(PARTS)):
            p_u = p_up + i_head * QUERY_WIDTH * RANK
            ups = ups + (weight_part(p_u, RANK, constant(PARTS[i]), PIECES, DOT),)
            biases = biases + (vector_part(p_bias + i_head * QUERY_WIDTH, constant(PARTS[i])),)
    scaled = ()
    for i in tl.static_range(len(queries)):
        scaled = scaled + ((queries[i] / largest[:, None]).to(DOT),)
    queries = scaled
    scaled = ()
    for i in tl.static_range(len(parts)):
        scaled = scaled + (parts[i] / largest[:, None],)
    parts = scaled
    accs = ()
    for i in tl.static_range(len(PIECES)):
        if PIECES[i].is_value:
            accs = accs + (tl.zeros([BLOCK_M, constant(PIECES[i].width)], tl.float32),)
    factor = largest * scale
    bonus = tl.zeros([BLOCK_M], tl.float32)
    if p_offset is not None:
        bonus = tl.load(p_offset + o_row, mask=m_m, other=0.0).to(tl.float32) * scale

    m_i = tl.full([BLOCK_M], -float("inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    o_block = tl.arange(0, BLOCK_N)
    p_frames = p_frame_table + i_seq.to(tl.int64) * max_frames
    for block in range(start, stop):
        o_n = block * BLOCK_N + o_block
        m_n = (o_n >= first) & (o_n < last)
        p_row, m_n = row_pointers(p_arena, p_frames, block, m_n, layer_offset, ROWS, BLOCK_N)
        gain = tl.full([BLOCK_N], 1.0, tl.float32)
        lost = tl.zeros([BLOCK_N], tl.float32)
        if ROWS.gain_byte >= 0:
            gain, lost = load_gain(p_row, m_n, p_tables, ROWS)
        # Scores are taken as soon as a piece is there: its tile then need not wait in registers.
        tiles = ()
        s_plain = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        s_coded = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for i in tl.static_range(len(PIECES)):
            tile = load_piece(
                p_row,
                m_n,
                p_tables,
                i_head,
                constant(PIECES[i]),
                ROWS.even,
                NATIVE_FLOAT8,
                DOT,
            )
            tiles = tiles + (tile,)
            if RANK == 0 and PIECES[i].is_key:
                if PIECES[i].coded:
                    s_coded = product(queries[PIECES[i].key_index], tl.trans(tile), s_coded)
                else:
                    s_plain = product(queries[PIECES[i].key_index], tl.trans(tile), s_plain)
        if RANK == 0:
            s = s_plain + s_coded * gain[None, :]
        else:
            large = tl.full([BLOCK_N], 1.0, tl.float32)
            if p_norm is None:
                large = tl.maximum(gain, 1.0)
            keys = rebuilt_keys(
                tiles, ups, biases, gain, large, p_norm, p_cos, p_sin, o_n, m_n, QUERY_WIDTH,
                EPSILON, PARTS, PIECES, BLOCK_N,
            )  # fmt: skip
            s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for i in tl.static_range(len(PARTS)):
                s = product(parts[i].to(DOT), tl.trans(keys[i].to(DOT)), s)
            s = s * large[None, :]
        s = s * factor[:, None] + bonus[:, None] + lost[None, :]
        s = seen_scores(s, m_n, o_n, position, WINDOW, SOFTCAP)

        m_new = tl.maximum(m_i, tl.max(s, 1))
        m_base = tl.where(m_new == -float("inf"), 0.0, m_new)
        p = tl.exp2(s - m_base[:, None])
        alpha = tl.exp2(m_i - m_base)
        l_i = l_i * alpha + tl.sum(p, 1)
        p_plain = p.to(DOT)
        p_coded = (p * gain[None, :]).to(DOT)
        mixed = ()
        for i in tl.static_range(len(PIECES)):
            if PIECES[i].is_value:
                if PIECES[i].coded:
                    mixed = mixed + (
                        product(p_coded, tiles[i], accs[PIECES[i].value_index] * alpha[:, None]),
                    )
                else:
                    mixed = mixed + (
                        product(p_plain, tiles[i], accs[PIECES[i].value_index] * alpha[:, None]),
                    )
        accs = mixed
        m_i = m_new

    norm = tl.where(l_i == 0.0, 1.0, l_i)
    lse = m_i + tl.log2(norm)
    if SPLIT:
        o_out = o_row * num_splits + i_split
        tl.store(p_lse + o_out, lse, mask=m_m)
    else:
        o_out = o_row
        tl.store(p_lse + o_out, lse / LOG2_E, mask=m_m)
    for i in tl.static_range(len(PIECES)):
        if PIECES[i].is_value:
            o_c = tl.arange(0, PIECES[i].width)
            mask = m_m[:, None] & (o_c < PIECES[i].valid)[None, :]
            p_o = p_out + o_out[:, None] * VALUE_WIDTH + (PIECES[i].value_channel + o_c)[None, :]
            mean = accs[PIECES[i].value_index] * (PIECES[i].unit / norm)[:, None]
            tl.store(p_o, rounded(mean, OUT), mask=mask)


def latent_decode_triton(
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    *,
    read: LatentRead,
    offset: Tensor | None,
    query_lens: Tensor | None,
    first_slots: Tensor | None,
    num_splits: int | None,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """See `latent_decode` and `latent_prefill`; for what `LatentRead.in_one_launch` is true of."""
    B, T, H, width = query.shape
    layout, key_up = rows.layout, read.key_up
    device = query.device
    key_heads = 1 if key_up is None else key_up.weight.shape[0]
    group = H // key_heads
    values = (layout.num_channels - read.value_rank, layout.num_channels)
    pieces = pieces_of(
        layout,
        keys=(0, read.key_rank),
        values=values,
        key_heads=read.key_heads,
    )
    exact = query.dtype == torch.float32
    if tiles is None:
        read_channels = min(read.value_rank + read.own_rank, layout.num_channels)
        if key_up is not None:
            read_channels += width
        tiles = choose_tiles(T * group, read_channels, layout, exact=exact)
        tiles = fitted(tiles, rows.frame_tokens)
    row_blocks = triton.cdiv(T * group, tiles.block_m)
    if num_splits is None:
        slots = frame_table.shape[1] * rows.frame_tokens
        sms = num_multiprocessors(device)
        num_splits = choose_splits(B * row_blocks * key_heads, slots, tiles.block_n, sms)

    out = query.new_empty(B, T, H, read.value_rank)
    lse = torch.empty(B, T, H, device=device, dtype=torch.float32)
    part, part_lse = out, lse
    split = num_splits > 1
    if split:
        shape = (B, T, H, num_splits)
        part = torch.empty(*shape, read.value_rank, device=device, dtype=torch.float32)
        part_lse = torch.empty(*shape, device=device, dtype=torch.float32)
    launch(
        latent_decode_fwd_kernel,
        (key_heads, B * num_splits, row_blocks),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        p_query=query.contiguous(),
        p_offset=None if offset is None else offset.contiguous(),
        p_arena=rows.arena,
        p_tables=rows.tables,
        p_frame_table=frame_table,
        p_context_lens=context_lens,
        p_query_lens=query_lens,
        p_first_slots=first_slots,
        p_up=None if key_up is None else key_up.weight.contiguous(),
        p_bias=None if key_up is None else key_up.bias.contiguous(),
        p_norm=None if key_up is None else key_up.norm_weight,
        p_cos=None if key_up is None or key_up.cos is None else key_up.cos.contiguous(),
        p_sin=None if key_up is None or key_up.sin is None else key_up.sin.contiguous(),
        p_out=part,
        p_lse=part_lse,
        num_tokens=T,
        num_splits=num_splits,
        max_frames=frame_table.shape[1],
        layer_offset=rows.layer_offset,
        scale=read.scale,
        HEADS=H,
        GROUP=group,
        QUERY_WIDTH=width,
        VALUE_WIDTH=read.value_rank,
        PIECES=pieces,
        ROWS=FramedRows.of(rows),
        WINDOW=read.window or 0,
        SOFTCAP=read.softcap or 0.0,
        RANK=0 if key_up is None else key_up.weight.shape[2],
        EPSILON=0.0 if key_up is None else key_up.norm_epsilon,
        PARTS=() if key_up is None else key_parts(width, key_up.rotary_dim),
        SPLIT=split,
        NATIVE_FLOAT8=has_native_float8(device),
        OUT=tl.float32 if split else TRITON_DTYPES[query.dtype],
        DOT=dot_dtype(query.dtype, wide=layout.wide),
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
    )
    if split:
        merge_splits(part, part_lse, out, lse)
    return out, lse
