"""The recurrence of Mamba-2 as pure functions: one step, and many steps in chunks.

    S_t = exp(dt_t A) S_(t-1) + dt_t x_t B_t^T,    y_t = S_t C_t

per head, with a scalar decay; heads of one group share B and C. A basis change of the state's
channels therefore commutes with it: with B' = L^T B and C' = R^T C the same functions run at any
width r. Everything is float32; S is (B, M, P, r).

Reference: Dao and Gu, Transformers are SSMs (arXiv 2405.21060), section 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64
"""Tokens that are read against each other at once."""


def per_head(tensor: Tensor, num_heads: int) -> Tensor:
    """(B, T, G, n) -> (B, T, M, n): every head sees what its group shares."""
    groups = tensor.shape[2]
    return tensor if groups == num_heads else tensor.repeat_interleave(num_heads // groups, dim=2)


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, write: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    """One token.

    Args:
        state: S, (B, M, P, r).
        x: (B, M, P).
        dt: step sizes after softplus, (B, M).
        A: negative decay rates, (M,).
        write: B, (B, G, r).
        read: C, (B, G, r).

    Returns:
        y (B, M, P), and the new state.
    """
    M = x.shape[1]
    write, read = (per_head(v[:, None], M)[:, 0] for v in (write, read))
    decay = torch.exp(dt * A)[..., None, None]
    state = state * decay + (x * dt[..., None])[..., None] * write[:, :, None]
    return torch.matmul(state, read[..., None])[..., 0], state


def ssd_scan(
    state: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, write: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    """T tokens, of which the last n are read.

    Args:
        state: S before the first token, (B, M, P, r); None for zeros.
        x: (B, T, M, P).
        dt: (B, T, M).
        A: (M,).
        write: B, (B, T, G, r).
        read: C of the last n tokens, (B, n, G, r), n <= T.

    Returns:
        y (B, n, M, P), and the state after the last token.
    """
    tokens, unread = x.shape[1], x.shape[1] - read.shape[1]
    if state is None:
        state = x.new_zeros(x.shape[0], *x.shape[2:], write.shape[-1])
    if tokens == 1 and unread == 0:
        y, state = ssd_step(state, x[:, 0], dt[:, 0], A, write[:, 0], read[:, 0])
        return y[:, None], state
    outputs = [x[:, :0]]
    for start in range(0, tokens, CHUNK):
        part = slice(start, min(start + CHUNK, tokens))
        seen = slice(max(0, part.start - unread), max(0, part.stop - unread))
        y, state = _chunk(state, x[:, part], dt[:, part], A, write[:, part], read[:, seen])
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def _chunk(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, write: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    M, tokens, n = x.shape[2], x.shape[1], read.shape[1]
    rows, columns = per_head(read, M).transpose(1, 2), per_head(write, M).transpose(1, 2)
    values = (x * dt[..., None]).transpose(1, 2)  # (B, M, T, P)
    log_decay = torch.cumsum(dt * A, dim=1).transpose(1, 2)  # (B, M, T)
    y = x[:, :0]
    if n:
        own = log_decay[..., tokens - n :]
        between = own[..., :, None] - log_decay[..., None, :]
        future = torch.ones(n, tokens, dtype=torch.bool, device=x.device).triu(tokens - n + 1)
        weights = torch.exp(between.masked_fill(future, -torch.inf))
        inside = (rows @ columns.transpose(-1, -2) * weights) @ values
        before = (rows @ state.transpose(-1, -2)) * torch.exp(own)[..., None]
        y = (inside + before).transpose(1, 2)
    to_end = torch.exp(log_decay[..., -1:] - log_decay)[..., None]
    state = state * torch.exp(log_decay[..., -1])[..., None, None]
    return y, state + values.transpose(-1, -2) @ (columns * to_end)
