"""A rotary key: channels that turn for all heads together, at some of the source's frequencies.

A key is [r; k] with r (Dr) rotated by its slot before it is stored, and k (D) of each key head not
at all; both are linear in a token's latent. A query q meets it as [B^T q rotated; q], and a score

    q . k' = (R_n B^T q) . (R_m r) + q . (A c) = [R_n B^T q; A^T q] . [R_m r; c]

asks the stored channels as they are: nothing is rebuilt. B and A are the columns of the key
projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import NotSupportedError
from .head import LatentHead
from .rotation import Angles, turned_halves


def stored_at(head: LatentHead, latent: Tensor, angles: Angles | None) -> Tensor:
    """Latents (B, T, R) as they are stored: the rotary key rotated by angles of their slots."""
    if not head.decouples or angles is None:
        return latent
    rotary = head.plan.qk_rope_head_dim
    turned = turned_at(head, latent[:, None, :, :rotary], angles)[:, 0]
    return torch.cat([turned, latent[..., rotary:]], dim=-1)


def split_queries(head: LatentHead, query: Tensor, angles: Angles | None) -> Tensor:
    """Queries (B, H, T, D) as they meet keys, (B, H, T, Dr + D).

    Raises:
        NotSupportedError: a key projection that is no matrix, so that no query can absorb it.
    """
    if not head.key_up.is_matrix(query):
        raise NotSupportedError(
            f"k_b_proj is a {type(head.key_up.projection).__name__}, which is not one linear map "
            "for all tokens, and queries absorb it where keys are decoupled; merge its adapters "
            "into it, or put them on other projections"
        )
    weight, _ = head.key_up.matrix(query)
    rotary = head.plan.qk_rope_head_dim
    asked = torch.matmul(head.grouped(query), weight[..., :rotary])
    asked = asked.view(*query.shape[:3], rotary)
    return torch.cat([turned_at(head, asked, angles), query], dim=-1)


def split_keys(head: LatentHead, latent: Tensor) -> Tensor:
    """Keys (B, J, S, Dr + D) of latents (B, S, R) as they are stored."""
    rotary, heads = head.plan.qk_rope_head_dim, head.num_key_value_heads
    # The projection itself is asked, whose outputs training looks at.
    still = head.key_up(
        torch.cat([torch.zeros_like(latent[..., :rotary]), latent[..., rotary:]], dim=-1)
    )
    still = still.unflatten(-1, (heads, head.head_dim)).transpose(1, 2)
    turning = latent[:, None, :, :rotary].expand(-1, heads, -1, -1)
    return torch.cat([turning, still], dim=-1)


def absorbed_split(head: LatentHead, query: Tensor) -> tuple[Tensor, Tensor]:
    """What stored channels are asked by `split_queries` (B, H, T, Dr + D), (B, H * T, R), and what
    the keys' bias adds to all products of a query, (B, H * T)."""
    B, H, T, _ = query.shape
    rotary = head.plan.qk_rope_head_dim
    weight, bias = head.key_up.matrix(query)
    still = head.grouped(query[..., rotary:])
    latent = torch.matmul(still, weight[..., rotary:]).view(B, H * T, -1)
    turning = query[..., :rotary].reshape(B, H * T, rotary)
    offset = torch.matmul(still, bias.view(-1, head.head_dim, 1)).view(B, H * T)
    return torch.cat([turning, latent], dim=-1), offset


def turned_at(head: LatentHead, channels: Tensor, angles: Angles | None) -> Tensor:
    """Channels (B, heads, T, Dr) rotated by angles of the source's frequencies that they have."""
    if angles is None:
        return channels
    index = head.noted(
        ("frequencies", channels.device), lambda: _angle_places(head).to(channels.device)
    )
    cos, sin = (angle.index_select(-1, index) for angle in angles)
    return turned_halves(channels, cos, sin)


def _angle_places(head: LatentHead) -> Tensor:
    """Where the angles of the rotary key's channels are among those of the source's, (Dr,)."""
    assert head.rotary is not None
    pairs = head.rotary.rotated_pairs(head.head_dim)
    assert pairs is not None  # checked before keys are decoupled
    return torch.tensor(head.plan.rotary_frequencies * 2) * pairs.angle_step
