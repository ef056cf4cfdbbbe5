"""The gated delta rule as pure functions: one step, and many steps in chunks.

    S_t = exp(g_t) S_(t-1) (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,    y_t = S_t q_t

per value head; value heads of one key head share k and q. Keys need not have unit length: with
|k| <= 1 the erasing factor stays a contraction, which is what a projected key has. Everything is
float32; S is (B, M, P, r), values by keys.

Reference: Yang et al., Gated Delta Networks (arXiv 2412.06464), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ssd import CHUNK, per_head


def delta_step(
    state: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, query: Tensor
) -> tuple[Tensor, Tensor]:
    """One token.

    Args:
        state: S, (B, M, P, r).
        key: (B, G, r), or (B, 1, G, r), as all others may have the token's axis.
        value: (B, M, P).
        log_decay: g <= 0, (B, M).
        beta: (B, M).
        query: (B, G, r).

    Returns:
        y of the shape of `value`, and the new state.
    """
    B, M, _, r = state.shape
    by_group = (B, key.shape[-2], -1, r)
    state = state * torch.exp(log_decay).view(B, M, 1, 1)
    held = torch.matmul(state.view(by_group), key.reshape(B, -1, r, 1)).view(value.shape)
    correction = ((value - held) * beta[..., None]).view(*by_group[:3], 1)
    state = torch.addcmul(state.view(by_group), correction, key.reshape(B, -1, 1, r))
    y = torch.matmul(state, query.reshape(B, -1, r, 1))
    return y.view(value.shape), state.view(B, M, -1, r)


def delta_scan(
    state: Tensor | None,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    query: Tensor,
) -> tuple[Tensor, Tensor]:
    """T tokens, of which the last n are read.

    Args:
        state: S before the first token, (B, M, P, r); None for zeros.
        key: (B, T, G, r).
        value: (B, T, M, P).
        log_decay, beta: (B, T, M).
        query: of the last n tokens, (B, n, G, r), n <= T.

    Returns:
        y (B, n, M, P), and the state after the last token.
    """
    if value.shape[1] == 1 and query.shape[1] == 1 and state is not None:
        return delta_step(state, key, value, log_decay, beta, query)
    y, state, _ = delta_scan_with_corrections(state, key, value, log_decay, beta, query)
    return y, state


def delta_scan_with_corrections(
    state: Tensor | None,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    query: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`delta_scan`, and what every token really adds along its key, (B, T, M, P)."""
    tokens, unread = value.shape[1], value.shape[1] - query.shape[1]
    if state is None:
        state = value.new_zeros(value.shape[0], *value.shape[2:], key.shape[-1])
    outputs, corrections = [value[:, :0]], [value[:, :0]]
    for start in range(0, tokens, CHUNK):
        part = slice(start, min(start + CHUNK, tokens))
        seen = slice(max(0, part.start - unread), max(0, part.stop - unread))
        y, state, correction = _chunk(
            state,
            key[:, part],
            value[:, part],
            log_decay[:, part],
            beta[:, part],
            query[:, seen],
        )
        outputs.append(y)
        corrections.append(correction)
    return torch.cat(outputs, dim=1), state, torch.cat(corrections, dim=1)


def _chunk(
    state: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, query: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    M, tokens, n = value.shape[2], value.shape[1], query.shape[1]
    keys, queries = per_head(key, M).transpose(1, 2), per_head(query, M).transpose(1, 2)
    values, beta = value.transpose(1, 2), beta.transpose(1, 2)[..., None]
    total = torch.cumsum(log_decay, dim=1).transpose(1, 2)  # (B, M, T)
    from_start = torch.exp(total)[..., None]
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=value.device).triu(1)
    weights = torch.exp((total[..., :, None] - total[..., None, :]).masked_fill(future, -torch.inf))
    # What a token adds depends on what the tokens before it in the chunk added: solve for all.
    system = (keys * beta) @ keys.transpose(-1, -2) * weights
    held = (keys @ state.transpose(-1, -2)) * from_start
    corrections = torch.linalg.solve_triangular(
        system, (values - held) * beta, upper=False, unitriangular=True
    )
    y = value[:, :0]
    if n:
        own = weights[..., tokens - n :, :]
        inside = (queries @ keys.transpose(-1, -2) * own) @ corrections
        before = (queries @ state.transpose(-1, -2)) * from_start[..., tokens - n :, :]
        y = (inside + before).transpose(1, 2)
    to_end = torch.exp(total[..., -1:] - total)[..., None]
    state = state * torch.exp(total[..., -1])[..., None, None]
    state = state + corrections.transpose(-1, -2) @ (keys * to_end)
    return y, state, corrections.transpose(1, 2)
