"""`ssd_replay_read` and `ssd_replay_flush` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..state_pages import StatePages
from ..state_reference import read_states, within_rank, write_states
from .ring import ReplayRing, part_addresses


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
    D: Tensor | None,
) -> Tensor:
    """See `ssd_replay_read`; float32 arithmetic."""
    kept = (table[:, 0] >= 0).nonzero()[:, 0]
    place = num_pending[kept].long()
    for name, newest in (("values", x), ("writes", write), ("steps", dt)):
        addresses = part_addresses(pages, ring, name, table[kept])
        _, shape, dtype = ring.shapes(pages)[name]
        by_input = addresses.view(len(kept), shape[0], -1)
        row = newest[kept].to(dtype).contiguous().flatten(1).view(torch.uint8)
        pages.arena[by_input[torch.arange(len(kept), device=x.device), place]] = row
    none = table[:, 0] < 0
    count = torch.where(none, 0, num_pending + 1)
    state = _replayed(A, pages, ring, table, count)
    # Padding has no ring, but its own token is read nevertheless.
    if bool(none.any()):
        values, writes = (v[none].to(ring.dtype).float() for v in (x, write))
        own = (values * dt[none].float()[..., None])[..., None]
        per_group = x.shape[1] // ring.groups
        state[none] = own * writes.repeat_interleave(per_group, dim=1)[:, :, None]
    state = within_rank(state, pages)
    queries = read.float().repeat_interleave(x.shape[1] // read.shape[1], dim=1)
    y = torch.matmul(state, queries[..., None])[..., 0]
    if D is not None:
        y = y + D.float()[:, None] * x.to(ring.dtype).float()
    return y.to(x.dtype)


def ssd_replay_flush_reference(
    A: Tensor,
    pages: StatePages,
    ring: ReplayRing,
    read_table: Tensor,
    write_table: Tensor,
    num_pending: Tensor,
) -> None:
    """See `ssd_replay_flush`; float32 arithmetic."""
    count = torch.where(read_table[:, 0] < 0, 0, num_pending)
    write_states(_replayed(A, pages, ring, read_table, count), pages, write_table)


def _replayed(
    A: Tensor, pages: StatePages, ring: ReplayRing, table: Tensor, count: Tensor
) -> Tensor:
    """States (B, M, P, width) after the first `count` inputs of the rings."""
    parts = {}
    for name, (_, shape, dtype) in ring.shapes(pages).items():
        stored = pages.arena[part_addresses(pages, ring, name, table)]
        parts[name] = stored.view(dtype).view(-1, *shape).float()
    valid = torch.arange(ring.length, device=A.device) < count[:, None]  # (B, L)
    steps = torch.where(valid[..., None], parts["steps"], 0.0)
    log_decay = torch.cumsum(steps * A.float(), dim=1)  # (B, L, M)
    last = log_decay[:, -1:]
    weights = torch.where(valid[..., None], torch.exp(last - log_decay) * steps, 0.0)
    values = torch.where(valid[..., None, None], parts["values"], 0.0) * weights[..., None]
    writes = torch.where(valid[..., None, None], parts["writes"], 0.0)
    writes = writes.repeat_interleave(A.shape[0] // ring.groups, dim=2)
    state = read_states(pages, table) * torch.exp(last[:, 0])[..., None, None]
    return state + torch.einsum("blmp,blmn->bmpn", values, writes)
