"""`gdn_step` in Triton.

One program steps a tile of a head: it loads the state, its inputs and the shared vectors, computes
in float32, and stores the state and its part of y. The grid is (sequence, head, tiles of a head).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...numerics import LOG2_E, TRITON_DTYPES
from ..addresses import HEAD_DIM, launch_segments
from ..pages import StatePages
from ..tile import against_channels, load_state, load_values, load_vector, store_state, store_values


@triton.jit
def gdn_step_fwd_kernel(
    p_key,  # (B, G, WIDTH)
    p_value,  # (B, M, P)
    p_log_decay,  # (B, M)
    p_beta,  # (B, M)
    p_query,  # (B, G, WIDTH)
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
    key = load_vector(p_key + o_group, SEGMENT)
    query = load_vector(p_query + o_group, SEGMENT)
    value = load_values(p_value + o_head * SEGMENT[HEAD_DIM], i_block, SEGMENT)
    state = state * tl.exp2(tl.load(p_log_decay + o_head).to(tl.float32) * LOG2_E)
    held = against_channels(state, key)[:, :, None, None]
    correction = (value - held) * tl.load(p_beta + o_head).to(tl.float32)
    state = state + correction * key
    y = against_channels(state, query)
    store_values(y, p_y + o_head * SEGMENT[HEAD_DIM], i_block, OUT, SEGMENT)
    store_state(state, at, p_write_table + i_seq * max_frames, i_m, i_block, SEGMENT, PLACE)


def gdn_step_triton(
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    query: Tensor,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
) -> Tensor:
    """See `gdn_step`; one launch per segment."""
    B, M, P = value.shape
    y = torch.empty(B, M, P, dtype=value.dtype, device=value.device)
    launch_segments(
        gdn_step_fwd_kernel,
        pages,
        B,
        p_key=key.contiguous(),
        p_value=value.contiguous(),
        p_log_decay=log_decay.contiguous(),
        p_beta=beta.contiguous(),
        p_query=query.contiguous(),
        p_y=y,
        p_read_table=read_table,
        p_write_table=write_table,
        max_frames=read_table.shape[1],
        HEADS=M,
        PER_GROUP=M // key.shape[1],
        WIDTH=pages.width,
        OUT=TRITON_DTYPES[value.dtype],
    )
    return y
