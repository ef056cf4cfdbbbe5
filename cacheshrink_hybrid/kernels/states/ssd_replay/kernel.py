"""`ssd_replay_read` and `ssd_replay_flush` in Triton.

As in `ssd_step`, one program takes a tile of a head. Reading, it multiplies the state with one
vector and never writes it; what the ring adds is L products of vectors. Flushing, it adds L outer
products to the tile and codes it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...numerics import LOG2_E, TRITON_DTYPES, rounded
from ..addresses import BLOCK, HEAD_DIM, NB, NU, RANK, UNIT, launch_segments
from ..pages import StatePages
from ..replay_ring import ReplayRing
from ..ring_tile import (
    keep_input,
    load_number_kept,
    load_values_kept,
    load_writes_kept,
    ring_arguments,
    ring_pointers,
    write_channels,
)
from ..tile import against_channels, load_state, load_vector, store_state, store_values


@triton.jit
def _steps(
    p_arena, p_table, i_head, count, HEADS: tl.constexpr, LENGTH: tl.constexpr, STEPS: tl.constexpr
):
    """Step sizes of the first `count` inputs, (LENGTH,), zero behind."""
    o_l = tl.arange(0, LENGTH)
    p = ring_pointers(p_arena, p_table, o_l * HEADS + i_head, STEPS, tl.float32)
    return tl.load(p, mask=o_l < count, other=0.0)


@triton.jit
def ssd_replay_read_fwd_kernel(
    p_x,  # (B, M, P)
    p_dt,  # (B, M)
    p_a,  # (M,)
    p_write,  # (B, GROUPS, WIDTH)
    p_read,  # (B, G, WIDTH)
    p_d,  # (M,) or None
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
    LENGTH: tl.constexpr,
    CAPACITY: tl.constexpr,
    VALUES: tl.constexpr,
    WRITES: tl.constexpr,
    STEPS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
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
    rate = tl.load(p_a + i_head).to(tl.float32) * LOG2_E
    dt = tl.load(p_dt + o_head).to(tl.float32)
    o_read = (i_seq * READ_GROUPS + i_head // (HEADS // READ_GROUPS)) * WIDTH

    # The stored state, decayed to now.
    steps = _steps(p_arena, p_frames, i_head, count, HEADS, LENGTH, STEPS)
    until = tl.cumsum(steps, 0)
    whole = tl.sum(steps, 0) + dt
    state = load_state(at, p_frames, i_m, i_block, SEGMENT, PLACE)
    read = load_vector(p_read + o_read, SEGMENT)
    y = against_channels(state, read) * tl.exp2(whole * rate)

    # Inputs of the ring: how much each is read, then their values.
    o_l = tl.arange(0, LENGTH)
    o_n = tl.arange(0, BLOCK_WIDTH)
    m_n = o_n < SEGMENT[RANK]
    mask = (o_l < count)[:, None] & m_n[None, :]
    write_at, num_writes = write_channels(p_starts, i_group, WIDTH)
    writes = load_writes_kept(
        p_arena, p_frames, o_l[:, None], write_at, o_n[None, :], mask, WRITE_ROW, WRITES, DTYPE
    )
    query = tl.load(p_read + o_read + o_n, mask=m_n, other=0.0).to(tl.float32)
    weight = tl.sum(writes * query[None, :], 1)
    weight = weight * steps * tl.exp2((whole - until) * rate)
    o_b = i_block * SEGMENT[NB] + tl.arange(0, SEGMENT[NB])
    o_p = o_b[:, None] * SEGMENT[BLOCK] + tl.arange(0, SEGMENT[BLOCK])[None, :]
    m_p = o_p < SEGMENT[HEAD_DIM]
    mask = m_p[:, :, None] & (o_l < count)[None, None, :]
    values = load_values_kept(
        p_arena, p_frames, o_l[None, None, :], i_head, o_p[:, :, None], mask, HEADS, SEGMENT,
        VALUES, DTYPE,
    )  # fmt: skip
    y += tl.sum(values * weight[None, None, :], 2)

    # The token itself, as the ring will hold it.
    o_write = (i_seq * GROUPS + i_group) * WIDTH
    own_write = rounded(tl.load(p_write + o_write + o_n, mask=m_n, other=0.0).to(tl.float32), DTYPE)
    own = tl.load(p_x + o_head * SEGMENT[HEAD_DIM] + o_p, mask=m_p, other=0.0).to(tl.float32)
    own = rounded(own, DTYPE)
    x = own.to(tl.float32)
    y += x * (dt * tl.sum(own_write.to(tl.float32) * query, 0))
    if p_d is not None:
        y += tl.load(p_d + i_head).to(tl.float32) * x
    store_values(y, p_y + o_head * SEGMENT[HEAD_DIM], i_block, OUT, SEGMENT)

    if held & (count < CAPACITY):
        keep_input(
            p_arena, p_frames, count, i_head, i_block, o_p, own, (dt,), p_write + o_write, write_at,
            num_writes, HEADS, GROUPS, WRITE_ROW, BLOCK_WIDTH, VALUES, WRITES, (STEPS,), DTYPE,
            SEGMENT,
        )  # fmt: skip


@triton.jit
def ssd_replay_flush_fwd_kernel(
    p_x,  # (B, M, P) or None
    p_dt,  # (B, M)
    p_write,  # (B, GROUPS, WIDTH)
    p_a,  # (M,)
    p_read_table,  # (B, max_frames)
    p_write_table,
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
    WIDTH: tl.constexpr,
    WRITE_ROW: tl.constexpr,
    LENGTH: tl.constexpr,
    CAPACITY: tl.constexpr,
    VALUES: tl.constexpr,
    WRITES: tl.constexpr,
    STEPS: tl.constexpr,
    DTYPE: tl.constexpr,
    SEGMENT: tl.constexpr,
    PLACE: tl.constexpr,
):
    i_seq = tl.program_id(0).to(tl.int64)
    i_m = tl.program_id(1)
    i_block = tl.program_id(2)
    at = (p_arena, codes_start, scales_start, first_frame, first_offset, first_rows)
    p_frames = p_read_table + i_seq * max_frames
    p_to = p_write_table + i_seq * max_frames
    if tl.load(p_to) >= 0:
        i_head = tl.load(p_heads + i_m)
        i_group = i_head // (HEADS // GROUPS)
        count = tl.where(tl.load(p_frames) >= 0, tl.load(p_pending + i_seq), 0)
        rate = tl.load(p_a + i_head).to(tl.float32) * LOG2_E
        steps = _steps(p_arena, p_frames, i_head, count, HEADS, LENGTH, STEPS)
        left = tl.sum(steps, 0)
        if p_x is not None:
            o_head = i_seq * HEADS + i_head
            dt = tl.load(p_dt + o_head).to(tl.float32)
            left += dt
        state = load_state(at, p_frames, i_m, i_block, SEGMENT, PLACE)
        state = state * tl.exp2(left * rate)
        o_b = i_block * SEGMENT[NB] + tl.arange(0, SEGMENT[NB])
        o_p = o_b[:, None] * SEGMENT[BLOCK] + tl.arange(0, SEGMENT[BLOCK])[None, :]
        o_n = tl.arange(0, SEGMENT[NU])[:, None] * SEGMENT[UNIT]
        o_n = o_n + tl.arange(0, SEGMENT[UNIT])[None, :]
        m_p = o_p < SEGMENT[HEAD_DIM]
        m_n = o_n < SEGMENT[RANK]
        write_at, _ = write_channels(p_starts, i_group, WIDTH)
        for j in range(0, count):
            step = load_number_kept(p_arena, p_frames, j, i_head, HEADS, STEPS)
            left -= step
            x = load_values_kept(
                p_arena, p_frames, j, i_head, o_p, m_p, HEADS, SEGMENT, VALUES, DTYPE
            )
            x = x * (step * tl.exp2(left * rate))
            write = load_writes_kept(
                p_arena, p_frames, j, write_at, o_n, m_n, WRITE_ROW, WRITES, DTYPE
            )
            state += x[:, :, None, None] * write[None, None, :, :]
        if p_x is not None:
            p = p_x + o_head * SEGMENT[HEAD_DIM] + o_p
            x = tl.load(p, mask=m_p, other=0.0).to(tl.float32)
            x = rounded(x, DTYPE).to(tl.float32) * dt
            p = p_write + (i_seq * GROUPS + i_group) * WIDTH + o_n
            write = tl.load(p, mask=m_n, other=0.0).to(tl.float32)
            write = rounded(write, DTYPE).to(tl.float32)
            state += x[:, :, None, None] * write[None, None, :, :]
        store_state(state, at, p_to, i_m, i_block, SEGMENT, PLACE)


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
    D: Tensor | None,
) -> Tensor:
    """See `ssd_replay_read`; one launch per segment."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch_segments(
        ssd_replay_read_fwd_kernel,
        pages,
        len(x),
        p_x=x.contiguous(),
        p_dt=dt.contiguous(),
        p_a=A,
        p_write=write.contiguous(),
        p_read=read.contiguous(),
        p_d=D,
        p_y=y,
        p_table=table,
        p_pending=num_pending,
        max_frames=table.shape[1],
        READ_GROUPS=read.shape[1],
        BLOCK_WIDTH=triton.next_power_of_2(pages.width),
        OUT=TRITON_DTYPES[x.dtype],
        **ring_arguments(pages, ring),
    )
    return y


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
    x, dt, write = (None, None, None) if newest is None else (v.contiguous() for v in newest)
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
