"""`ssd_replay_read` and `ssd_replay_flush` in Triton.

As in `ssd_step`, one program takes a tile of a head. Reading, it multiplies the state with one
vector and never writes it; what the ring adds is L products of vectors. Flushing, it adds L outer
products to the tile and codes it.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...numerics import LOG2_E, constant, rounded
from ..addresses import (
    ARENA,
    channel_offsets,
    group_offset,
    launch_segments,
    launch_step,
    program_head,
    value_offsets,
)
from ..pages import StatePages
from ..replay_ring import ReplayRing
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
def _steps(p_arena, p_frames, i_head, count, RING: tl.constexpr, SEGMENT: tl.constexpr):
    """Step sizes of the first `count` inputs, (LENGTH,), zero behind."""
    o_l = tl.arange(0, RING.length)
    p = scalar_pointers(p_arena, p_frames, o_l, i_head, constant(RING.scalars[0]), SEGMENT)
    return tl.load(p, mask=o_l < count, other=0.0)


@triton.jit
def ssd_replay_read_fwd_kernel(
    p_x,  # (B, M, P)
    p_dt,  # (B, M)
    p_a,  # (M,)
    p_write,  # (B, ring's groups, width)
    p_read,  # (B, G, width)
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
    rate = tl.load(p_a + i_head).to(tl.float32) * LOG2_E
    dt = tl.load(p_dt + o_head).to(tl.float32)
    o_read = group_offset(i_seq, i_head, READ_GROUPS, SEGMENT)

    # The stored state, decayed to now.
    steps = _steps(p_arena, p_frames, i_head, count, RING, SEGMENT)
    until = tl.cumsum(steps, 0)
    whole = tl.sum(steps, 0) + dt
    state = load_state(at, p_frames, i_m, i_block, SEGMENT)
    read = load_vector(p_read + o_read, SEGMENT)
    y = against_channels(state, read) * tl.exp2(whole * rate)

    # Inputs of the ring: how much each is read, then their values.
    o_l = tl.arange(0, RING.length)
    o_n = tl.arange(0, RING.block_width)
    m_n = o_n < SEGMENT.rank
    mask = (o_l < count)[:, None] & m_n[None, :]
    i_group = i_head // (SEGMENT.heads // RING.groups)
    write_at, num_writes = write_channels(p_starts, i_group, SEGMENT)
    writes = load_writes_kept(
        p_arena, p_frames, o_l[:, None], write_at, o_n[None, :], mask, RING, DTYPE
    )
    query = tl.load(p_read + o_read + o_n, mask=m_n, other=0.0).to(tl.float32)
    weight = tl.sum(writes * query[None, :], 1)
    weight = weight * steps * tl.exp2((whole - until) * rate)
    o_p = value_offsets(i_block, SEGMENT)
    m_p = o_p < SEGMENT.head_dim
    mask = m_p[:, :, None] & (o_l < count)[None, None, :]
    values = load_values_kept(
        p_arena, p_frames, o_l[None, None, :], i_head, o_p[:, :, None], mask, RING, DTYPE, SEGMENT
    )
    y += tl.sum(values * weight[None, None, :], 2)

    # The token itself, as the ring will hold it.
    o_write = group_offset(i_seq, i_head, RING.groups, SEGMENT)
    own_write = rounded(tl.load(p_write + o_write + o_n, mask=m_n, other=0.0).to(tl.float32), DTYPE)
    own = tl.load(p_x + o_head * SEGMENT.head_dim + o_p, mask=m_p, other=0.0).to(tl.float32)
    own = rounded(own, DTYPE)
    y += own.to(tl.float32) * (dt * tl.sum(own_write.to(tl.float32) * query, 0))
    store_values(y, p_y + o_head * SEGMENT.head_dim, i_block, SEGMENT)

    if held & (count < RING.capacity):
        keep_input(
            p_arena, p_frames, count, i_head, i_block, o_p, own, (dt,), p_write + o_write, write_at,
            num_writes, RING, DTYPE, SEGMENT,
        )  # fmt: skip


@triton.jit
def ssd_replay_flush_fwd_kernel(
    p_x,  # (B, M, P) or None
    p_dt,  # (B, M)
    p_write,  # (B, ring's groups, width)
    p_a,  # (M,)
    p_read_table,  # (B, max_frames)
    p_write_table,
    p_pending,  # (B,)
    p_starts,  # (ring's groups + 1,) or None
    max_frames,
    at,
    RING: tl.constexpr,
    DTYPE: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    i_seq, i_m, i_block, i_head, o_head = program_head(at, SEGMENT)
    p_arena = at[ARENA]
    p_frames = p_read_table + i_seq * max_frames
    p_to = p_write_table + i_seq * max_frames
    if tl.load(p_to) >= 0:
        count = tl.where(tl.load(p_frames) >= 0, tl.load(p_pending + i_seq), 0)
        rate = tl.load(p_a + i_head).to(tl.float32) * LOG2_E
        left = tl.sum(_steps(p_arena, p_frames, i_head, count, RING, SEGMENT), 0)
        if p_x is not None:
            dt = tl.load(p_dt + o_head).to(tl.float32)
            left += dt
        state = load_state(at, p_frames, i_m, i_block, SEGMENT)
        state = state * tl.exp2(left * rate)
        o_p = value_offsets(i_block, SEGMENT)
        m_p = o_p < SEGMENT.head_dim
        o_n = channel_offsets(SEGMENT)
        m_n = o_n < SEGMENT.rank
        i_group = i_head // (SEGMENT.heads // RING.groups)
        write_at, _ = write_channels(p_starts, i_group, SEGMENT)
        for j in range(0, count):
            step = tl.load(
                scalar_pointers(p_arena, p_frames, j, i_head, constant(RING.scalars[0]), SEGMENT)
            )
            left -= step
            x = load_values_kept(p_arena, p_frames, j, i_head, o_p, m_p, RING, DTYPE, SEGMENT)
            x = x * (step * tl.exp2(left * rate))
            write = load_writes_kept(p_arena, p_frames, j, write_at, o_n, m_n, RING, DTYPE)
            state += x[:, :, None, None] * write[None, None, :, :]
        if p_x is not None:
            p = p_x + o_head * SEGMENT.head_dim + o_p
            x = tl.load(p, mask=m_p, other=0.0).to(tl.float32)
            x = rounded(x, DTYPE).to(tl.float32) * dt
            p = p_write + group_offset(i_seq, i_head, RING.groups, SEGMENT) + o_n
            write = tl.load(p, mask=m_n, other=0.0).to(tl.float32)
            write = rounded(write, DTYPE).to(tl.float32)
            state += x[:, :, None, None] * write[None, None, :, :]
        store_state(state, at, p_to, i_m, i_block, SEGMENT)


def ssd_replay_read_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    pages: StatePages,
    ring: ReplayRing,
    table: Tensor,
    num_pending: Tensor,
) -> Tensor:
    """See `ssd_replay_read`; one launch per segment."""
    return launch_step(
        ssd_replay_read_fwd_kernel,
        x,
        pages,
        p_x=x,
        p_dt=dt,
        p_a=A,
        p_write=write,
        p_read=read,
        p_table=table,
        p_pending=num_pending,
        max_frames=table.shape[1],
        READ_GROUPS=read.shape[1],
        **ring_arguments(pages, ring),
    )


def ssd_replay_flush_triton(
    A: Tensor,
    pages: StatePages,
    ring: ReplayRing,
    read_table: Tensor,
    write_table: Tensor,
    num_pending: Tensor,
    newest: tuple[Tensor, Tensor, Tensor] | None,
) -> None:
    """See `ssd_replay_flush`; one launch per segment."""
    x, dt, write = newest or (None, None, None)
    launch_segments(
        ssd_replay_flush_fwd_kernel,
        pages,
        len(num_pending),
        p_x=x,
        p_dt=dt,
        p_write=write,
        p_a=A,
        p_read_table=read_table,
        p_write_table=write_table,
        p_pending=num_pending,
        max_frames=read_table.shape[1],
        **ring_arguments(pages, ring),
    )
