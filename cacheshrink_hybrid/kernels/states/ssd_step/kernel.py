"""`ssd_step` in Triton.

One program steps a tile of a head: it loads the state, its inputs and the shared vectors, computes
in float32, and stores the state and its part of y. The grid is (sequence, head, tiles of a head).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...numerics import LOG2_E, TRITON_DTYPES, softplus
from ..addresses import HEAD_DIM, launch_segments
from ..pages import StatePages
from ..tile import against_channels, load_state, load_values, load_vector, store_state, store_values


@triton.jit
def ssd_step_fwd_kernel(
    p_x,  # (B, M, P)
    p_dt,  # (B, M)
    p_a,  # (M,)
    p_write,  # (B, G, WIDTH)
    p_read,
    p_d,  # (M,) or None
    p_dt_bias,  # (M,) or None
    p_y,  # (B, M, P)
    p_read_table,  # (B, max_frames)
    p_write_table,
    p_arena,
    p_heads,
    max_frames,
    codes_start,
    scales_start,
    first_frame,
    first_offset,
    first_rows,
    HEADS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
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
    o_group = (i_seq * (HEADS // PER_GROUP) + i_head // PER_GROUP) * WIDTH
    state = load_state(at, p_read_table + i_seq * max_frames, i_m, i_block, SEGMENT, PLACE)
    write = load_vector(p_write + o_group, SEGMENT)
    read = load_vector(p_read + o_group, SEGMENT)
    x = load_values(p_x + o_head * SEGMENT[HEAD_DIM], i_block, SEGMENT)
    dt = tl.load(p_dt + o_head).to(tl.float32)
    if p_dt_bias is not None:
        dt = softplus(dt + tl.load(p_dt_bias + i_head).to(tl.float32))
    decay = tl.exp2(dt * tl.load(p_a + i_head).to(tl.float32) * LOG2_E)
    state = state * decay + (x * dt) * write
    y = against_channels(state, read)
    if p_d is not None:
        y += tl.load(p_d + i_head).to(tl.float32) * tl.reshape(x, y.shape)
    store_values(y, p_y + o_head * SEGMENT[HEAD_DIM], i_block, OUT, SEGMENT)
    store_state(state, at, p_write_table + i_seq * max_frames, i_m, i_block, SEGMENT, PLACE)


def ssd_step_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
) -> Tensor:
    """See `ssd_step`; one launch per segment."""
    B, M, P = x.shape
    y = torch.empty(B, M, P, dtype=x.dtype, device=x.device)
    x, dt, write, read = (tensor.contiguous() for tensor in (x, dt, write, read))
    launch_segments(
        ssd_step_fwd_kernel,
        pages,
        B,
        p_x=x,
        p_dt=dt,
        p_a=A,
        p_write=write,
        p_read=read,
        p_d=D,
        p_dt_bias=dt_bias,
        p_y=y,
        p_read_table=read_table,
        p_write_table=write_table,
        max_frames=read_table.shape[1],
        HEADS=M,
        PER_GROUP=M // write.shape[1],
        WIDTH=pages.width,
        OUT=TRITON_DTYPES[x.dtype],
    )
    return y
