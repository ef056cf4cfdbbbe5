"""`mamba1_step` in Triton.

One program steps a tile of a head: it loads the state, its inputs and the shared vectors, computes
in float32, and stores the state and its part of y. The grid is (sequence, head, tiles of a head).
"""

import triton
import triton.language as tl
from torch import Tensor

from ...numerics import LOG2_E
from ..addresses import launch_step, program_head, tile_offsets
from ..pages import StatePages
from ..tile import against_channels, load_state, load_values, load_vector, store_state, store_values


@triton.jit
def mamba1_step_fwd_kernel(
    p_x,  # (B, M, P)
    p_dt,  # (B, M, P)
    p_a,  # (M, P, width)
    p_write,  # (B, M, width)
    p_read,
    p_y,  # (B, M, P)
    p_read_table,  # (B, max_frames)
    p_write_table,
    max_frames,
    at,
    SEGMENT: tl.constexpr,
):
    i_seq, i_m, i_block, i_head, o_head = program_head(at, SEGMENT)
    state = load_state(at, p_read_table + i_seq * max_frames, i_m, i_block, SEGMENT)
    write = load_vector(p_write + o_head * SEGMENT.width, SEGMENT)
    read = load_vector(p_read + o_head * SEGMENT.width, SEGMENT)
    x = load_values(p_x + o_head * SEGMENT.head_dim, i_block, SEGMENT)
    dt = load_values(p_dt + o_head * SEGMENT.head_dim, i_block, SEGMENT)
    o_p, o_u, mask = tile_offsets(i_block, SEGMENT)
    o_n = o_u + tl.arange(0, SEGMENT.unit)[None, None, None, :]
    p_rate = p_a + (i_head * SEGMENT.head_dim + o_p) * SEGMENT.width + o_n
    rate = tl.load(p_rate, mask=mask, other=0.0).to(tl.float32)
    state = state * tl.exp2(dt * rate * LOG2_E) + (x * dt) * write
    y = against_channels(state, read)
    store_values(y, p_y + o_head * SEGMENT.head_dim, i_block, SEGMENT)
    store_state(state, at, p_write_table + i_seq * max_frames, i_m, i_block, SEGMENT)


def mamba1_step_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
) -> Tensor:
    """See `mamba1_step`; one launch per segment."""
    return launch_step(
        mamba1_step_fwd_kernel,
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
    )
