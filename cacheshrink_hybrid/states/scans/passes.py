"""States as calibration looks at them: one stretch of tokens after another, at full width."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .selective import selective_step
from .ssd import CHUNK, gated_scan, per_head

SELECTIVE_CHUNK = 8
"""Every how many tokens the states of a selective scan are looked at; it shows them one by one."""

Pass = tuple[Tensor | None, Tensor, Tensor, Tensor]
"""u = S^T g of every token, (B, T, M, N), or None without gradients; the last state, (B, M, P, N);
log decay, (B, T, M); what is written, (B, T, G, N)."""


def gated_passes(
    write: Tensor, values: Tensor, log_decay: Tensor, gradient: Tensor | None
) -> Iterator[Pass]:
    """Of a scan whose heads decay as a whole.

    Args:
        write: (B, T, G, N).
        values: what is written along it, (B, T, M, P).
        log_decay: (B, T, M).
        gradient: of y, (B, T, M, P).
    """
    keys = per_head(write, values.shape[2])
    state = None
    for start in range(0, values.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        # With the roles of values and keys exchanged, the scan's state is S^T, and what g reads
        # from it is u = S^T g.
        read = values[:, part][:, :0] if gradient is None else gradient[:, part].float()
        costs, state = gated_scan(state, keys[:, part], log_decay[:, part], values[:, part], read)
        yield (
            None if gradient is None else costs,
            state.transpose(-1, -2),
            log_decay[:, part],
            write[:, part],
        )


def selective_passes(
    x: Tensor, dt: Tensor, A: Tensor, write: Tensor, reads: Tensor, gradient: Tensor | None
) -> Iterator[Pass]:
    """Of a scan whose elements have a decay each; see `selective_scan`."""
    state = x.new_zeros(x.shape[0], *x.shape[2:], write.shape[-1])
    for start in range(0, x.shape[1], SELECTIVE_CHUNK):
        part = slice(start, start + SELECTIVE_CHUNK)
        costs = []
        for t in range(*part.indices(x.shape[1])):
            _, state = selective_step(state, x[:, t], dt[:, t], A, write[:, t], reads[:, t])
            if gradient is not None:
                costs.append(torch.einsum("bmp,bmpn->bmn", gradient[:, t].float(), state))
        decay = (dt[:, part, ..., None] * A).mean((-1, -2))
        yield (torch.stack(costs, dim=1) if costs else None), state, decay, write[:, part]
