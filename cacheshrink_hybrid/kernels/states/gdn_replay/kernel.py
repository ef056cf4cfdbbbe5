"""`gdn_replay_step` in Triton.

As in `gdn_step`, one program takes a tile of a head. It brings the state up to date in registers,
input by input, reads it, and writes it only where the ring is full. The grid is (sequence, head,
tiles of a head).
"""

import triton
import triton.language as tl
from torch import Tensor

from ...numerics import LOG2_E, constant, rounded
from ..addresses import (
    ARENA,
    channel_offsets,
    group_offset,
    launch_step,
    program_head,
    value_offsets,
)
from ..pages import StatePages
from ..replay_ring import DeltaRing
from ..ring_tile import (
    keep_input,
    load_values_kept,
    load_writes_kept,
    ring_arguments,
    scalar_pointers,
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
    p_key,  # (B, ring's groups, width)
    p_value,  # (B, M, P)
    p_log_decay,  # (B, M)
    p_beta,  # (B, M)
    p_query,  # (B, G, width)
    p_y,  # (B, M, P)
    p_table,  # (B, max_frames)
    p_pending,  # (B,)
    p_starts,  # (ring's groups + 1,) or None
    max_frames,
    at,
    READ_GROUPS: tl.constexpr,
    RING: tl.constexpr,
    DTYPE: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    i_seq, i_m, i_block, i_head, o_head = program_head(at, SEGMENT)
    p_arena = at[ARENA]
    p_frames = p_table + i_seq * max_frames
    held = tl.load(p_frames) >= 0
    count = tl.where(held, tl.load(p_pending + i_seq), 0)
    state = load_state(at, p_frames, i_m, i_block, SEGMENT)

    o_p = value_offsets(i_block, SEGMENT)[:, :, None, None]
    m_p = o_p < SEGMENT.head_dim
    o_n = channel_offsets(SEGMENT)[None, None, :, :]
    m_n = o_n < SEGMENT.rank
    i_group = i_head // (SEGMENT.heads // RING.groups)
    write_at, num_writes = write_channels(p_starts, i_group, SEGMENT)
    for j in range(0, count):
        decay = tl.load(
            scalar_pointers(p_arena, p_frames, j, i_head, constant(RING.scalars[0]), SEGMENT)
        )
        beta = tl.load(
            scalar_pointers(p_arena, p_frames, j, i_head, constant(RING.scalars[1]), SEGMENT)
        )
        key = load_writes_kept(p_arena, p_frames, j, write_at, o_n, m_n, RING, DTYPE)
        value = load_values_kept(p_arena, p_frames, j, i_head, o_p, m_p, RING, DTYPE, SEGMENT)
        state = _stepped(state, key, value, decay, beta)

    o_write = group_offset(i_seq, i_head, RING.groups, SEGMENT)
    decay = tl.load(p_log_decay + o_head).to(tl.float32)
    beta = tl.load(p_beta + o_head).to(tl.float32)
    key = rounded(load_vector(p_key + o_write, SEGMENT), DTYPE).to(tl.float32)
    own = tl.load(p_value + o_head * SEGMENT.head_dim + o_p, mask=m_p, other=0.0).to(tl.float32)
    own = rounded(own, DTYPE)
    state = _stepped(state, key, own.to(tl.float32), decay, beta)
    o_read = group_offset(i_seq, i_head, READ_GROUPS, SEGMENT)
    y = against_channels(state, load_vector(p_query + o_read, SEGMENT))
    store_values(y, p_y + o_head * SEGMENT.head_dim, i_block, SEGMENT)

    if held & (count >= RING.capacity):
        store_state(state, at, p_frames, i_m, i_block, SEGMENT)
    if held & (count < RING.capacity):
        keep_input(
            p_arena, p_frames, count, i_head, i_block, o_p, own, (decay, beta), p_key + o_write,
            write_at, num_writes, RING, DTYPE, SEGMENT,
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
    return launch_step(
        gdn_replay_step_fwd_kernel,
        value,
        pages,
        p_key=key,
        p_value=value,
        p_log_decay=log_decay,
        p_beta=beta,
        p_query=query,
        p_table=table,
        p_pending=num_pending,
        max_frames=table.shape[1],
        READ_GROUPS=query.shape[1],
        **ring_arguments(pages, ring),
    )
