"""`ssd_replay_read` and `ssd_replay_flush` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pages import StatePages
from ..reference import read_states, within_rank, write_states
from ..replay_ring import ReplayRing, store_inputs, stored_inputs


def ssd_replay_read_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    write: Tensor,
    read: Tensor,
    pages: StatePages,
    ring: ReplayRing,
    table: Tensor,
    num_pending: Tensor,
) -> Tensor:
    """See `ssd_replay_read`; float32 arithmetic."""
    store_inputs(pages, ring, table, num_pending, {"values": x, "writes": write, "steps": dt})
    state = _replayed(A, pages, ring, table, _held(table, num_pending), (x, dt, write))
    state = within_rank(state, pages.format)
    queries = read.float().repeat_interleave(x.shape[1] // read.shape[1], dim=1)
    y = torch.matmul(state, queries[..., None])[..., 0]
    return y.to(x.dtype)


def ssd_replay_flush_reference(
    A: Tensor,
    pages: StatePages,
    ring: ReplayRing,
    read_table: Tensor,
    write_table: Tensor,
    num_pending: Tensor,
    newest: tuple[Tensor, Tensor, Tensor] | None,
) -> None:
    """See `ssd_replay_flush`; float32 arithmetic."""
    count = _held(read_table, num_pending)
    state = _replayed(A, pages, ring, read_table, count, newest)
    write_states(within_rank(state, pages.format), pages, write_table)


def _held(table: Tensor, num_pending: Tensor) -> Tensor:
    """Inputs in the rings: none for padding."""
    return torch.where(table[:, 0] < 0, 0, num_pending)


def _replayed(
    A: Tensor,
    pages: StatePages,
    ring: ReplayRing,
    table: Tensor,
    count: Tensor,
    newest: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """States (B, M, P, width) after the first `count` inputs of the rings, and the newest one."""
    parts = stored_inputs(pages, ring, table)
    valid = torch.arange(ring.length, device=A.device) < count[:, None]  # (B, L)
    steps = torch.where(valid[..., None], parts["steps"], 0.0)
    log_decay = torch.cumsum(steps * A.float(), dim=1)  # (B, L, M)
    last = log_decay[:, -1:]
    weights = torch.where(valid[..., None], torch.exp(last - log_decay) * steps, 0.0)
    values = torch.where(valid[..., None, None], parts["values"], 0.0) * weights[..., None]
    writes = torch.where(valid[..., None, None], parts["writes"], 0.0)
    writes = writes.repeat_interleave(A.shape[0] // ring.groups, dim=2)
    state = read_states(pages, table) * torch.exp(last[:, 0])[..., None, None]
    state = state + torch.einsum("blmp,blmn->bmpn", values, writes)
    if newest is None:
        return state
    x, dt, write = (part.to(dtype).float() for part, dtype in zip(
        newest, (ring.dtype, torch.float32, ring.dtype), strict=True
    ))  # fmt: skip
    write = write.repeat_interleave(A.shape[0] // ring.groups, dim=1)
    state = state * torch.exp(dt * A.float())[..., None, None]
    return state + (x * dt[..., None])[..., None] * write[:, :, None]
