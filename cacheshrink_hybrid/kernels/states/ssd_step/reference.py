"""`ssd_step` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pages import StatePages
from ..reference import read_states, within_rank, write_states


def ssd_step_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
) -> Tensor:
    """See `ssd_step`; float32 arithmetic."""
    per_group = x.shape[1] // write.shape[1]
    value, step = x.float(), dt.float()
    write, read = (v.float().repeat_interleave(per_group, dim=1) for v in (write, read))
    state = read_states(pages, read_table)
    decay = torch.exp(step * A.float())[..., None, None]
    state = state * decay + (value * step[..., None])[..., None] * write[:, :, None]
    state = within_rank(state, pages.format)
    y = torch.matmul(state, read[..., None])[..., 0]
    write_states(state, pages, write_table)
    return y.to(x.dtype)
