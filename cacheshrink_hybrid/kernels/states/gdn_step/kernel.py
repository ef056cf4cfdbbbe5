"""`gdn_step` in Triton.

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
def gdn_step_fwd_kernel(
    p_key,  # (B, G, width)
    p_value,  # (B, M, P)
    p_log_decay,  # (B, M)
    p_beta,  # (B, M)
    p_query,  # (B, G, width)
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
    key = load_vector(p_key + o_group, SEGMENT)
    query = load_vector(p_query + o_group, SEGMENT)
    value = load_values(p_value + o_head * SEGMENT.head_dim, i_block, SEGMENT)
    state = state * tl.exp2(tl.load(p_log_decay + o_head).to(tl.float32) * LOG2_E)
    held = against_channels(state, key)[:, :, None, None]
    correction = (value - held) * tl.load(p_beta + o_head).to(tl.float32)
    state = state + correction * key
    y = against_channels(state, query)
    store_values(y, p_y + o_head * SEGMENT.head_dim, i_block, SEGMENT)
    store_state(state, at, p_write_table + i_seq * max_frames, i_m, i_block, SEGMENT)


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
    return launch_step(
        gdn_step_fwd_kernel,
        value,
        pages,
        p_key=key,
        p_value=value,
        p_log_decay=log_decay,
        p_beta=beta,
        p_query=query,
        p_read_table=read_table,
        p_write_table=write_table,
        max_frames=read_table.shape[1],
        GROUPS=key.shape[1],
    )
