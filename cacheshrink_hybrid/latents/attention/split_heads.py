"""Heads: those of a projection, with the norm that some models have there; and gates on what they
give."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def split_heads(x: Tensor, head_dim: int, norm: nn.Module | None, spans_heads: bool) -> Tensor:
    """(B, T, heads * D) as (B, heads, T, D), normalised.

    Args:
        norm: over one head's channels, or over all heads' if `spans_heads`; None for none.
    """
    if norm is not None and spans_heads:
        x = norm(x)
    x = x.unflatten(-1, (-1, head_dim))
    if norm is not None and not spans_heads:
        x = norm(x)
    return x.transpose(1, 2)


def split_query(
    q: Tensor, head_dim: int, norm: nn.Module | None, spans_heads: bool, *, gated: bool
) -> tuple[Tensor, Tensor | None]:
    """Queries before rotation (B, H, T, D), and the gate (B, T, H*D) or None.

    Args:
        q: what the query projection gives, (B, T, H*D); (B, T, H*2*D) if `gated`, with each head's
            gate behind its query.
    """
    gate = None
    if gated:
        q, gate = q.unflatten(-1, (-1, 2 * head_dim)).chunk(2, dim=-1)
        q, gate = q.flatten(-2), gate.flatten(-2)
    return split_heads(q, head_dim, norm, spans_heads), gate


def gated_heads(heads: Tensor, gate: Tensor) -> Tensor:
    """Heads' outputs (B, T, H*D) times the sigmoids of their gates, (B, T, H*D), or (B, T, H)."""
    opened = torch.sigmoid(gate)[..., None]
    return (heads.unflatten(-1, (*gate.shape[2:], -1)) * opened).flatten(-2)
