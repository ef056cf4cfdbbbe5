"""`mamba1_step` in Triton.

One program steps a tile of a head: it loads the state, its inputs and the shared vectors, computes
in float32, and stores the state and its part of y. The grid is (sequence, head, tiles of a head).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...numerics import LOG2_E, TRITON_DTYPES
from ..addresses import HEAD_DIM, UNIT, launch_segments, tile_offsets
from ..pages import StatePages
from ..tile import against_channels, load_state, load_values, load_vector, store_state, store_values


@triton.jit
def mamba1_step_fwd_kernel(
    p_x,  # (B, M, P)
    p_dt,  # (B, M, P)
    p_a,  # (M, P, WIDTH)
    p_write,  # (B, M, WIDTH)
    p_read,
    p_d,  # (M, P) or None
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
    state = load_state(at, p_read_table + i_seq * max_frames, i_m, i_block, SEGMENT, PLACE)
    write = load_vector(p_write + o_head * WIDTH, SEGMENT)
    read = load_vector(p_read + o_head * WIDTH, SEGMENT)
    x = load_values(p_x + o_head * SEGMENT[HEAD_DIM], i_block, SEGMENT)
    dt = load_values(p_dt + o_head * SEGMENT[HEAD_DIM], i_block, SEGMENT)
    o_p, o_u, mask = tile_offsets(i_block, SEGMENT)
    o_n = o_u + tl.arange(0, SEGMENT[UNIT])[None, None, None, :]
    p_rate = p_a + (i_head * SEGMENT[HEAD_DIM] + o_p) * WIDTH + o_n
    rate = tl.load(p_rate, mask=mask, other=0.0).to(tl.float32)
    state = state * tl.exp2(dt * rate * LOG2_E) + (x * dt) * write
    y = against_channels(state, read)
    if p_d is not None:
        skip = load_values(p_d + i_head * SEGMENT[HEAD_DIM], i_block, SEGMENT)
        y += tl.reshape(skip * x, y.shape)
    store_values(y, p_y + o_head * SEGMENT[HEAD_DIM], i_block, OUT, SEGMENT)
    store_state(state, at, p_write_table + i_seq * max_frames, i_m, i_block, SEGMENT, PLACE)


def mamba1_step_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
    D: Tensor | None,
) -> Tensor:
    """See `mamba1_step`; one launch per segment."""
    B, M, P = x.shape
    y = torch.empty(B, M, P, dtype=x.dtype, device=x.device)
    launch_segments(
        mamba1_step_fwd_kernel,
        pages,
        B,
        p_x=x.contiguous(),
        p_dt=dt.contiguous(),
        p_a=A.contiguous(),
        p_write=write.contiguous(),
        p_read=read.contiguous(),
        p_d=D,
        p_y=y,
        p_read_table=read_table,
        p_write_table=write_table,
        max_frames=read_table.shape[1],
        HEADS=M,
        WIDTH=pages.width,
        OUT=TRITON_DTYPES[x.dtype],
    )
    return y
