"""`ssd_step` in Triton.

One program steps a tile of a head: it loads the state, its inputs and the shared vectors, computes
in float32, and stores the state and its part of y. The grid is (sequence, head, tiles of a head).
"""

import triton
import triton.language as tl
from torch import Tensor

from ...numerics import LOG2_E
from ..addresses import group_offset, launch_step, program_head
from ..pages import StatePages
from ..tile import against_channels, load_state, load_values, load_vector, store_state, store_values


@triton.jit
def ssd_step_fwd_kernel(
    p_x,  # (B, M, P)
    p_dt,  # (B, M)
    p_a,  # (M,)
    p_write,  # (B, G, width)
    p_read,
    p_y,  # (B, M, P)
    p_read_table,  # (B, max_frames)
    p_write_table,
    max_frames,
    at,
    GROUPS: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    i_seq, i_m, i_block, i_head, o_head = program_head(at, SEGMENT)
    o_group = group_offset(i_seq, i_head, GROUPS, SEGMENT)
    state = load_state(at, p_read_table + i_seq * max_frames, i_m, i_block, SEGMENT)
    write = load_vector(p_write + o_group, SEGMENT)
    read = load_vector(p_read + o_group, SEGMENT)
    x = load_values(p_x + o_head * SEGMENT.head_dim, i_block, SEGMENT)
    dt = tl.load(p_dt + o_head).to(tl.float32)
    decay = tl.exp2(dt * tl.load(p_a + i_head).to(tl.float32) * LOG2_E)
    state = state * decay + (x * dt) * write
    y = against_channels(state, read)
    store_values(y, p_y + o_head * SEGMENT.head_dim, i_block, SEGMENT)
    store_state(state, at, p_write_table + i_seq * max_frames, i_m, i_block, SEGMENT)


def ssd_step_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
) -> Tensor:
    """See `ssd_step`; one launch per segment."""
    return launch_step(
        ssd_step_fwd_kernel,
        x,
        pages,
        p_x=x,
        p_dt=dt,
        p_a=A,
        p_write=write,
        p_read=read,
        p_read_table=read_table,
        p_write_table=write_table,
        max_frames=read_table.shape[1],
        GROUPS=write.shape[1],
    )
