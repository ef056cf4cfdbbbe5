"""`gdn_step` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pages import StatePages
from ..reference import read_states, within_rank, write_states


def gdn_step_reference(
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    query: Tensor,
    pages: StatePages,
    read_table: Tensor,
    write_table: Tensor,
) -> Tensor:
    """See `gdn_step`; float32 arithmetic."""
    per_group = value.shape[1] // key.shape[1]
    keys, queries = (v.float().repeat_interleave(per_group, dim=1) for v in (key, query))
    state = read_states(pages, read_table) * torch.exp(log_decay.float())[..., None, None]
    held = torch.matmul(state, keys[..., None])[..., 0]
    correction = (value.float() - held) * beta.float()[..., None]
    state = state + correction[..., None] * keys[:, :, None]
    state = within_rank(state, pages.format)
    y = torch.matmul(state, queries[..., None])[..., 0]
    write_states(state, pages, write_table)
    return y.to(value.dtype)
