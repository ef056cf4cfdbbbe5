"""`gdn_replay_step` in Triton.

As in `gdn_step`, one program takes a tile of a head. It brings the state up to date in registers,
input by input, reads it, and writes it only where the ring is full. The grid is (sequence, head,
tiles of a head).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...numerics import LOG2_E, TRITON_DTYPES, rounded
from ..addresses import HEAD_DIM, NU, RANK, UNIT, launch_segments, tile_offsets
from ..pages import StatePages
from ..replay_ring import DeltaRing
from ..ring_tile import (
    keep_input,
    load_number_kept,
    load_values_kept,
    load_writes_kept,
    ring_arguments,
    write_channels,
)
from ..tile import against_channels, load_state, load_vector, store_state, store_values


@triton.jit
def _stepped(state, key, value, decay, beta):
    """A tile after one input: key (1, 1, NU, E), value (NB, BLOCK, 1, 1)."""
    state = state * tl.exp2(decay * LOG2_E)
    held = against_channels(state, key)[:, :, None, None]
    return state + (value - held) * beta * key


@triton.jit
def gdn_replay_step_fwd_kernel(
    p_key,  # (B, GROUPS, WIDTH)
    p_value,  # (B, M, P)
    p_log_decay,  # (B, M)
    p_beta,  # (B, M)
    p_query,  # (B, G, WIDTH)
    p_y,  # (B, M, P)
    p_table,  # (B, max_frames)
    p_pending,  # (B,)
    p_arena,
    p_heads,
    p_starts,  # (GROUPS + 1,) or None
    max_frames,
    codes_start,
    scales_start,
    first_frame,
    first_offset,
    first_rows,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    READ_GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WRITE_ROW: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,
    CAPACITY: tl.constexpr,
    VALUES: tl.constexpr,
    WRITES: tl.constexpr,
    DECAYS: tl.constexpr,
    BETAS: tl.constexpr,
    DTYPE: tl.constexpr,
    OUT: tl.constexpr,
    SEGMENT: tl.constexpr,
    PLACE: tl.constexpr,
):
    i_seq = tl.program_id(0).to(tl.int64)
    i_m = tl.program_id(1)
    i_block = tl.program_id(2)
    at = (p_arena, codes_start, scales_start, first_frame, first_offset, first_rows)
    i_head = tl.load(p_heads + i_m)
    o_head = i_seq * HEADS + i_head
    i_group = i_head // (HEADS // GROUPS)
    p_frames = p_table + i_seq * max_frames
    held = tl.load(p_frames) >= 0
    count = tl.where(held, tl.load(p_pending + i_seq), 0)
    state = load_state(at, p_frames, i_m, i_block, SEGMENT, PLACE)

    o_p, _, _ = tile_offsets(i_block, SEGMENT)
    m_p = o_p < SEGMENT[HEAD_DIM]
    o_n = tl.arange(0, SEGMENT[NU])[:, None] * SEGMENT[UNIT]
    o_n = (o_n + tl.arange(0, SEGMENT[UNIT])[None, :])[None, None, :, :]
    m_n = o_n < SEGMENT[RANK]
    write_at, num_writes = write_channels(p_starts, i_group, WIDTH)
    for j in range(0, count):
        decay = load_number_kept(p_arena, p_frames, j, i_head, HEADS, DECAYS)
        beta = load_number_kept(p_arena, p_frames, j, i_head, HEADS, BETAS)
        key = load_writes_kept(p_arena, p_frames, j, write_at, o_n, m_n, WRITE_ROW, WRITES, DTYPE)
        value = load_values_kept(
            p_arena, p_frames, j, i_head, o_p, m_p, HEADS, SEGMENT, VALUES, DTYPE
        )
        state = _stepped(state, key, value, decay, beta)

    o_write = (i_seq * GROUPS + i_group) * WIDTH
    decay = tl.load(p_log_decay + o_head).to(tl.float32)
    beta = tl.load(p_beta + o_head).to(tl.float32)
    key = rounded(load_vector(p_key + o_write, SEGMENT), DTYPE).to(tl.float32)
    own = tl.load(p_value + o_head * SEGMENT[HEAD_DIM] + o_p, mask=m_p, other=0.0).to(tl.float32)
    own = rounded(own, DTYPE)
    state = _stepped(state, key, own.to(tl.float32), decay, beta)
    o_read = (i_seq * READ_GROUPS + i_head // (HEADS // READ_GROUPS)) * WIDTH
    y = against_channels(state, load_vector(p_query + o_read, SEGMENT))
    store_values(y, p_y + o_head * SEGMENT[HEAD_DIM], i_block, OUT, SEGMENT)

    if held & (count >= CAPACITY):
        store_state(state, at, p_frames, i_m, i_block, SEGMENT, PLACE)
    if held & (count < CAPACITY):
        keep_input(
            p_arena, p_frames, count, i_head, i_block, o_p, own, (decay, beta), p_key + o_write,
            write_at, num_writes, HEADS, GROUPS, WRITE_ROW, BLOCK_WIDTH, VALUES, WRITES,
            (DECAYS, BETAS), DTYPE, SEGMENT,
        )  # fmt: skip


def gdn_replay_step_triton(
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    query: Tensor,
    pages: StatePages,
    ring: DeltaRing,
    table: Tensor,
    num_pending: Tensor,
) -> Tensor:
    """See `gdn_replay_step`; one launch per segment."""
    y = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    launch_segments(
        gdn_replay_step_fwd_kernel,
        pages,
        len(value),
        p_key=key.contiguous(),
        p_value=value.contiguous(),
        p_log_decay=log_decay.contiguous(),
        p_beta=beta.contiguous(),
        p_query=query.contiguous(),
        p_y=y,
        p_table=table,
        p_pending=num_pending,
        max_frames=table.shape[1],
        READ_GROUPS=query.shape[1],
        BLOCK_WIDTH=triton.next_power_of_2(pages.width),
        OUT=TRITON_DTYPES[value.dtype],
        **ring_arguments(pages, ring),
    )
    return y
