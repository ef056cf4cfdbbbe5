"""`gdn_replay_step` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pages import StatePages
from ..reference import read_states, within_rank, write_states
from ..replay_ring import DeltaRing, store_inputs, stored_inputs


def gdn_replay_step_reference(
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    query: Tensor,
    pages: StatePages,
    ring: DeltaRing,
    table: Tensor,
    num_pending: Tensor,
) -> Tensor:
    """See `gdn_replay_step`; float32 arithmetic."""
    per_group = value.shape[1] // ring.groups
    count = torch.where(table[:, 0] < 0, 0, num_pending)
    inputs = stored_inputs(pages, ring, table)
    state = read_states(pages, table)
    for j in range(ring.length):
        stepped = _step(state, {name: part[:, j] for name, part in inputs.items()}, per_group)
        stepped = within_rank(stepped, pages.format)
        state = torch.where((j < count)[:, None, None, None], stepped, state)
    newest = {"values": value, "writes": key, "decays": log_decay, "betas": beta}
    as_stored = {
        name: newest[name].to(dtype).float() for name, (_, _, dtype) in ring.shapes(pages).items()
    }
    state = within_rank(_step(state, as_stored, per_group), pages.format)
    queries = query.float().repeat_interleave(value.shape[1] // query.shape[1], dim=1)
    y = torch.matmul(state, queries[..., None])[..., 0]
    store_inputs(pages, ring, table, num_pending, newest)
    full = torch.where((num_pending == ring.length)[:, None], table, -1)
    write_states(state, pages, full)
    return y.to(value.dtype)


def _step(state: Tensor, inputs: dict[str, Tensor], per_group: int) -> Tensor:
    """States (B, M, P, width) after one input of each sequence."""
    key = inputs["writes"].repeat_interleave(per_group, dim=1)
    state = state * torch.exp(inputs["decays"])[..., None, None]
    held = torch.matmul(state, key[..., None])[..., 0]
    correction = (inputs["values"] - held) * inputs["betas"][..., None]
    return state + correction[..., None] * key[:, :, None]
