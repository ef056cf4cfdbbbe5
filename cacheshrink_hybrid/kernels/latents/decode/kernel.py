"""`latent_decode` and `latent_prefill` in Triton.

One program holds BLOCK_M rows (token, head) of queries and walks over its share of the slots in
tiles of BLOCK_N, with an online softmax in powers of two. A tile of latents is loaded once and
serves as keys and as values. The grid is (key heads that read by themselves, sequence x split, row
blocks): heads that read the same slots run side by side, and the second one finds them in the
cache.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import has_native_float8, launch, num_multiprocessors
from ...numerics import LOG2_E, TRITON_DTYPES, constant, dot_dtype, product, rounded
from ..paged_rows import PagedRows
from ..row_tile import FramedRows, Piece, load_head, load_piece, pieces_of
from .key_tile import key_parts, query_part, query_piece, rebuilt_keys, vector_part, weight_part
from .merge import merge_splits
from .read import ExactPages, LatentRead
from .slot_range import block_range, row_pointers
from .tiles import Tiles, choose_splits, choose_tiles, fitted


@triton.jit
def latent_decode_fwd_kernel(
    p_query,  # (B, T, H, K)
    p_offset,  # (B, T, H) or None
    p_arena,
    p_levels,
    p_table,  # (B, max_frames)
    p_first_table,  # (B, max_first_frames) or None
    p_context_lens,  # (B,)
    p_query_lens,  # (B,) or None
    p_first_slots,  # (B,) or None
    p_sinks,  # (H,) or None
    p_up,  # (J, D, RANK) or None
    p_bias,  # (J, D)
    p_norm,  # (D,) or None
    p_cos,  # (slots, ROTARY / 2) or None
    p_sin,
    p_out,  # (B, T, H, RV), or (B, T, H, parts, RV) float32
    p_total,  # (B, T, H), or log-sum-exp (B, T, H, parts)
    num_tokens,
    num_splits,
    num_parts,
    first_part,
    max_frames,
    max_first_frames,
    layer_offset,
    first_offset,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
    ROWS: tl.constexpr,
    FIRST_ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    BEHIND: tl.constexpr,
    SKIPPED: tl.constexpr,
    SINKS: tl.constexpr,
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

    # Rows of this program: token-major, and within a token the heads that read the same keys.
    o_m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_token = o_m // GROUP
    m_m = i_token < num_tokens
    o_row = (i_seq * num_tokens + i_token).to(tl.int64) * HEADS + i_head * GROUP + o_m % GROUP
    context = tl.load(p_context_lens + i_seq)
    new = num_tokens
    if p_query_lens is not None:
        new = tl.load(p_query_lens + i_seq)
        m_m = m_m & (i_token < new)
    # Slot of each row's own token; or BEHIND slots before it, where its window is read elsewhere.
    context -= BEHIND
    position = context - new + i_token

    first_seen = SKIPPED
    if p_first_slots is not None:
        first_seen += tl.load(p_first_slots + i_seq)
    start, stop, first, last = block_range(
        context, new, first_seen, i_split, num_splits, max_frames * ROWS.frame_tokens,
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
    for i in tl.static_range(len(PARTS)):
        q = query_part(p_q, m_m, constant(PARTS[i]))
        largest = tl.maximum(largest, tl.max(tl.abs(q), 1))
        queries = queries + (q,)
    ups = ()
    biases = ()
    for i in tl.static_range(len(PARTS)):
        p_u = p_up + i_head * QUERY_WIDTH * RANK
        ups = ups + (weight_part(p_u, RANK, constant(PARTS[i]), PIECES, DOT),)
        biases = biases + (vector_part(p_bias + i_head * QUERY_WIDTH, constant(PARTS[i])),)
    scaled = ()
    for i in tl.static_range(len(queries)):
        scaled = scaled + ((queries[i] / largest[:, None]).to(DOT),)
    queries = scaled
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
    p_frames = p_table + i_seq.to(tl.int64) * max_frames
    if SINKS > 0:
        # Blocks of rows that are counted from the first visible slot come before those of slots.
        p_firsts = p_first_table + i_seq.to(tl.int64) * max_first_frames
        if WINDOW == 0:
            stop = start
    for block in range(start - (SINKS + BLOCK_N - 1) // BLOCK_N, stop):
        first_slot = block * BLOCK_N
        if SINKS > 0:
            in_sinks = block < start
            first_slot = tl.where(in_sinks, -BLOCK_N, first_slot)
        o_n = first_slot + o_block
        m_n = o_n < last
        if SINKS > 0:
            m_n = m_n & (o_n >= 0)
        if WINDOW > 0:
            m_n = m_n & (o_n >= first)
        if p_first_slots is not None or SKIPPED > 0:
            m_n = m_n & (o_n >= first_seen)
        p_row, m_n = row_pointers(p_arena, p_frames, first_slot, m_n, layer_offset, ROWS, BLOCK_N)
        if SINKS > 0:
            first_sink = (block - start) * BLOCK_N + (SINKS + BLOCK_N - 1) // BLOCK_N * BLOCK_N
            first_sink = tl.where(in_sinks, first_sink, -BLOCK_N)
            o_sink = first_sink + o_block
            m_sink = (o_sink >= 0) & (o_sink < SINKS) & (first_seen + o_sink < context)
            p_sink, m_sink = row_pointers(
                p_arena, p_firsts, first_sink, m_sink, first_offset, FIRST_ROWS, BLOCK_N
            )
            o_n = tl.where(in_sinks, first_seen + o_sink, o_n)
            p_row = tl.where(in_sinks, p_sink, p_row)
            m_n = m_n | m_sink
        head = tl.zeros([BLOCK_N], tl.int32)
        gain = tl.full([BLOCK_N], 1.0, tl.float32)
        lost = tl.zeros([BLOCK_N], tl.float32)
        if ROWS.head_byte >= 0:
            head, gain, lost = load_head(p_row, m_n, ROWS)
        tiles = ()
        for i in tl.static_range(len(PIECES)):
            tile = load_piece(
                p_row,
                m_n,
                head,
                p_levels,
                i_head,
                constant(PIECES[i]),
                ROWS.even,
                NATIVE_FLOAT8,
                DOT,
            )
            tiles = tiles + (tile,)

        if RANK == 0:
            s_plain = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            s_coded = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for i in tl.static_range(len(PIECES)):
                if PIECES[i].is_key:
                    if PIECES[i].coded:
                        s_coded = product(queries[PIECES[i].key_index], tl.trans(tiles[i]), s_coded)
                    else:
                        s_plain = product(queries[PIECES[i].key_index], tl.trans(tiles[i]), s_plain)
            s = s_plain + s_coded * gain[None, :]
        else:
            keys = rebuilt_keys(
                tiles, ups, biases, gain, p_norm, p_cos, p_sin, o_n, m_n, QUERY_WIDTH, EPSILON,
                PARTS, PIECES, BLOCK_N,
            )  # fmt: skip
            s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for i in tl.static_range(len(PARTS)):
                s = product(queries[i], tl.trans(keys[i].to(DOT)), s)
        s = s * factor[:, None] + bonus[:, None] + lost[None, :]
        if SOFTCAP > 0:
            s = SOFTCAP - 2.0 * SOFTCAP / (tl.exp2(s * (2.0 * LOG2_E / SOFTCAP)) + 1.0)
        seen = m_n[None, :] & (o_n[None, :] <= position[:, None])
        if WINDOW > 0:
            recent = o_n[None, :] > position[:, None] - WINDOW
            if SINKS > 0:
                recent = recent != in_sinks  # a recent sink is read as a recent token
            seen = seen & recent
        s = tl.where(seen, s * LOG2_E, -float("inf"))

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

    if SPLIT:
        o_out = o_row * num_parts + first_part + i_split
        norm = tl.where(l_i == 0.0, 1.0, l_i)
        tl.store(p_total + o_out, m_i + tl.log2(norm), mask=m_m)
    else:
        o_out = o_row
        norm = l_i
        if p_sinks is not None:
            sink = tl.load(p_sinks + i_head * GROUP + o_m % GROUP).to(tl.float32) * LOG2_E
            m_new = tl.maximum(m_i, sink)
            shrink = tl.exp2(m_i - m_new)
            l_i = l_i * shrink
            norm = l_i + tl.exp2(sink - m_new)
            shrunk = ()
            for i in tl.static_range(len(PIECES)):
                if PIECES[i].is_value:
                    shrunk = shrunk + (accs[PIECES[i].value_index] * shrink[:, None],)
            accs = shrunk
        norm = tl.where(norm == 0.0, 1.0, norm)
        tl.store(p_total + o_out, l_i / norm, mask=m_m)
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
    exact: ExactPages | None = None,
    beside: tuple[Tensor, Tensor] | None = None,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """See `latent_decode` and `latent_prefill`."""
    B, T, H, width = query.shape
    key_up, device = read.key_up, query.device
    key_heads = 1 if key_up is None else key_up.weight.shape[0]
    group = H // key_heads
    if tiles is None:
        tiles = _tiles(query, rows, read)
    if num_splits is None:
        programs = B * triton.cdiv(T * group, tiles.block_m) * key_heads
        slots = frame_table.shape[1] * rows.frame_tokens
        sms = num_multiprocessors(device)
        num_splits = choose_splits(programs, slots, tiles.block_n, sms)

    out = query.new_empty(B, T, H, read.value_rank)
    total = torch.empty(B, T, H, device=device, dtype=torch.float32)
    part, part_total = out, total
    num_parts = num_splits + (exact is not None) + (beside is not None)
    split = num_parts > 1
    if split:
        shape = (B, T, H, num_parts)
        part = torch.empty(*shape, read.value_rank, device=device, dtype=torch.float32)
        part_total = torch.empty(*shape, device=device, dtype=torch.float32)
    common = {
        "p_query": query.contiguous(),
        "p_offset": None if offset is None else offset.contiguous(),
        "p_arena": rows.arena,
        "p_context_lens": context_lens,
        "p_query_lens": query_lens,
        "p_first_slots": first_slots,
        "p_sinks": None if split else read.sinks,
        "p_up": None if key_up is None else key_up.weight.contiguous(),
        "p_bias": None if key_up is None else key_up.bias.contiguous(),
        "p_norm": None if key_up is None else key_up.norm_weight,
        "p_cos": None if key_up is None or key_up.cos is None else key_up.cos.contiguous(),
        "p_sin": None if key_up is None or key_up.sin is None else key_up.sin.contiguous(),
        "p_out": part,
        "p_total": part_total,
        "num_tokens": T,
        "num_parts": num_parts,
        "scale": read.scale,
        "HEADS": H,
        "GROUP": group,
        "QUERY_WIDTH": width,
        "VALUE_WIDTH": read.value_rank,
        "SOFTCAP": read.softcap or 0.0,
        "RANK": 0 if key_up is None else key_up.weight.shape[2],
        "EPSILON": 0.0 if key_up is None else key_up.norm_epsilon,
        "PARTS": () if key_up is None else key_parts(width, key_up.rotary_dim),
        "SPLIT": split,
        "NATIVE_FLOAT8": has_native_float8(device),
        "OUT": tl.float32 if split else TRITON_DTYPES[query.dtype],
    }

    def launch_on(rows: PagedRows, tiles: Tiles, num_splits: int, **own: Any) -> None:
        launch(
            latent_decode_fwd_kernel,
            (key_heads, B * num_splits, triton.cdiv(T * group, tiles.block_m)),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            p_levels=rows.levels,
            num_splits=num_splits,
            layer_offset=rows.layer_offset,
            PIECES=_pieces(rows, read),
            ROWS=FramedRows.of(rows),
            DOT=dot_dtype(query.dtype, wide=rows.layout.wide),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            **common,
            **own,
        )

    launch_on(
        rows,
        tiles,
        num_splits,
        p_table=frame_table,
        p_first_table=None,
        first_part=0,
        max_frames=frame_table.shape[1],
        max_first_frames=0,
        first_offset=0,
        FIRST_ROWS=None,
        WINDOW=0 if read.window is None else read.window - read.exact_window,
        BEHIND=read.exact_window,
        SKIPPED=read.exact_sinks,
        SINKS=0,
    )
    if exact is not None:
        recent, first = exact.recent or exact.rows, exact.first or exact.rows
        table = exact.first_table if exact.recent_table is None else exact.recent_table
        assert table is not None
        # Where all texts are short, the table has no frames for the last sinks.
        num_first = 0 if exact.first_table is None else exact.first_table.shape[1]
        sinks = min(read.exact_sinks, num_first * first.frame_tokens)
        launch_on(
            recent,
            _tiles(query, recent, read),
            1,
            p_table=table,
            p_first_table=exact.first_table,
            first_part=num_splits,
            max_frames=table.shape[1],
            max_first_frames=num_first,
            first_offset=first.layer_offset,
            FIRST_ROWS=FramedRows.of(first),
            WINDOW=read.exact_window,
            BEHIND=0,
            SKIPPED=0,
            SINKS=sinks,
        )
    if beside is not None:
        part[:, :, :, -1], part_total[:, :, :, -1] = beside[0], beside[1] * LOG2_E.value
    if split:
        merge_splits(part, part_total, read.sinks, out, total)
    return out, total


def _pieces(rows: PagedRows, read: LatentRead) -> tuple[Piece, ...]:
    """How a program walks through a row."""
    channels, per_head = rows.layout.num_channels, read.key_up is not None and read.key_up.per_head
    return pieces_of(
        rows.layout,
        keys=(0, read.key_rank),
        values=(channels - read.value_rank, channels),
        key_heads=read.key_up.weight.shape[0] if read.key_up is not None and per_head else 1,
    )


def _tiles(query: Tensor, rows: PagedRows, read: LatentRead) -> Tiles:
    """Tiles for these queries (B, T, H, K) and rows."""
    key_up, T, H = read.key_up, query.shape[1], query.shape[2]
    key_heads = 1 if key_up is None else key_up.weight.shape[0]
    own_heads = 1 if key_up is None or not key_up.per_head else key_heads
    channels = min(read.value_rank + read.key_rank // own_heads, rows.layout.num_channels)
    if key_up is not None:
        channels += query.shape[3]
    exact = query.dtype == torch.float32
    tiles = choose_tiles(T * H // key_heads, channels, rows.layout, exact=exact)
    return fitted(tiles, rows.frame_tokens)
