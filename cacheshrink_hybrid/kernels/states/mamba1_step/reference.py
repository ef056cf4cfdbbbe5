"""`mamba1_step` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pages import StatePages
from ..reference import read_states, within_rank, write_states


def mamba1_step_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
) -> Tensor:
    """See `mamba1_step`; float32 arithmetic."""
    value, step = x.float(), dt.float()
    state = read_states(pages, read_table) * torch.exp(step[..., None] * A.float())
    state = state + (value * step)[..., None] * write.float()[:, :, None]
    state = within_rank(state, pages.format)
    y = torch.matmul(state, read.float()[..., None])[..., 0]
    write_states(state, pages, write_table)
    return y.to(x.dtype)
