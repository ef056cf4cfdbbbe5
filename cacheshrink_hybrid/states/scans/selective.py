"""The recurrence of Mamba-1 as pure functions.

    h_t[p, n] = exp(dt_t[p] A[p, n]) h_(t-1)[p, n] + dt_t[p] x_t[p] B_t[n],    y_t = h_t C_t

per head, with a decay of its own for every element: no basis change commutes with it, but channels
can be left out. Everything is float32; h is (B, M, P, r).

Reference: Gu and Dao, Mamba (arXiv 2312.00752), algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def selective_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, write: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    """One token.

    Args:
        state: h, (B, M, P, r).
        x, dt: (B, M, P).
        A: negative decay rates, (M, P, r).
        write, read: B and C, (B, M, r).

    Returns:
        y (B, M, P), and the new state.
    """
    state = state * torch.exp(dt[..., None] * A) + (x * dt)[..., None] * write[:, :, None]
    return torch.matmul(state, read[..., None])[..., 0], state


def selective_scan(
    state: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, write: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    """T tokens, of which the last n are read.

    Args:
        state: h before the first token, (B, M, P, r); None for zeros.
        x, dt: (B, T, M, P).
        A: (M, P, r).
        write: B, (B, T, M, r).
        read: C of the last n tokens, (B, n, M, r), n <= T.

    Returns:
        y (B, n, M, P), and the state after the last token.
    """
    tokens, unread = x.shape[1], x.shape[1] - read.shape[1]
    if state is None:
        state = x.new_zeros(x.shape[0], *x.shape[2:], write.shape[-1])
    outputs = []
    for t in range(tokens):
        if t >= unread:
            y, state = selective_step(state, x[:, t], dt[:, t], A, write[:, t], read[:, t - unread])
            outputs.append(y)
        else:
            step = dt[:, t, ..., None]
            state = state * torch.exp(step * A) + (x[:, t, ..., None] * step) * write[:, t, :, None]
    return (torch.stack(outputs, dim=1) if outputs else x[:, :0]), state
