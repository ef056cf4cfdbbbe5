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
        x: (B, M, P), or (B, 1, M, P), as all others may have the token's axis.
        dt: step sizes after softplus, (B, M).
        A: negative decay rates, (M,).
        write: B, (B, G, r).
        read: C, (B, G, r).

    Returns:
        y of the shape of x, and the new state.
    """
    B, M, _, r = state.shape
    by_group = (B, write.shape[-2], -1, r)
    decay = torch.exp(dt * A).view(B, M, 1, 1)
    written = (x * dt[..., None]).view(*by_group[:3], 1) * write.reshape(B, -1, 1, r)
    state = torch.addcmul(written.view(state.shape), state, decay)
    y = torch.matmul(state.view(by_group), read.reshape(B, -1, r, 1))
    return y.view(x.shape), state


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
    if x.shape[1] == 1 and read.shape[1] == 1 and state is not None:
        return ssd_step(state, x, dt, A, write, read)
    return gated_scan(state, x * dt[..., None], dt * A, write, read)


def ssd_read(
    state: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, write: Tensor, read: Tensor
) -> Tensor:
    """What `ssd_scan` reads, without the state that it ends with."""
    return gated_read(state, x * dt[..., None], dt * A, write, read)


def gated_scan(
    state: Tensor | None, values: Tensor, log_decay: Tensor, write: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    """S_t = exp(a_t) S_(t-1) + v_t B_t^T and y_t = S_t C_t, over T tokens, the last n read.

    Args:
        state: (B, M, P, r), or None for zeros.
        values: v, (B, T, M, P).
        log_decay: a <= 0, (B, T, M).
        write: B, (B, T, G, r).
        read: C of the last n tokens, (B, n, G, r).

    Returns:
        y (B, n, M, P), and the state after the last token.
    """
    tokens, unread = values.shape[1], values.shape[1] - read.shape[1]
    if state is None:
        state = values.new_zeros(values.shape[0], *values.shape[2:], write.shape[-1])
    outputs = [values[:, :0]]
    for start in range(0, tokens, CHUNK):
        part = slice(start, min(start + CHUNK, tokens))
        seen = slice(max(0, part.start - unread), max(0, part.stop - unread))
        y, state = _chunk(state, values[:, part], log_decay[:, part], write[:, part], read[:, seen])
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def gated_read(
    state: Tensor | None, values: Tensor, log_decay: Tensor, write: Tensor, read: Tensor
) -> Tensor:
    """What `gated_scan` reads, without the state that it ends with."""
    if values.shape[1] > CHUNK:
        return gated_scan(state, values, log_decay, write, read)[0]
    total = torch.cumsum(log_decay, dim=1).transpose(1, 2)  # (B, M, T)
    return _read(state, values.transpose(1, 2), total, per_head(write, values.shape[2]), read)


def _chunk(
    state: Tensor, values: Tensor, log_decay: Tensor, write: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    write = per_head(write, values.shape[2])
    y = values[:, :0]
    values = values.transpose(1, 2)  # (B, M, T, P)
    total = torch.cumsum(log_decay, dim=1).transpose(1, 2)  # (B, M, T)
    if read.shape[1]:
        y = _read(state, values, total, write, read)
    to_end = torch.exp(total[..., -1:] - total)[..., None]
    state = state * torch.exp(total[..., -1])[..., None, None]
    return y, state + values.transpose(-1, -2) @ (write.transpose(1, 2) * to_end)


def _read(
    state: Tensor | None, values: Tensor, total: Tensor, write: Tensor, read: Tensor
) -> Tensor:
    """y (B, n, M, P) of the last n tokens of a chunk.

    Args:
        state: before the chunk, (B, M, P, r); None for zeros.
        values: (B, M, T, P).
        total: log decay from the start of the chunk to each token, (B, M, T).
        write: (B, T, M, r).
        read: (B, n, G, r).
    """
    tokens, n = values.shape[2], read.shape[1]
    rows, columns = per_head(read, values.shape[1]).transpose(1, 2), write.transpose(1, 2)
    own = total[..., tokens - n :]
    between = own[..., :, None] - total[..., None, :]
    if n > 1:
        future = torch.ones(n, tokens, dtype=torch.bool, device=values.device).triu(tokens - n + 1)
        between = between.masked_fill(future, -torch.inf)
    y = (rows @ columns.transpose(-1, -2) * torch.exp(between)) @ values
    if state is not None:
        y = y + (rows @ state.transpose(-1, -2)) * torch.exp(own)[..., None]
    return y.transpose(1, 2)
