"""Keys rebuilt with their channels in pairs, so that they are rotated where they are: half the
memory traffic of rotating copies, which is what decoding on a CPU waits for.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ...lasting import lasting_tensors
from .head import LatentHead
from .rotation import Angles, in_pairs, turn_pairs_


def keeps_pairs(head: LatentHead, query: Tensor, angles: Angles) -> bool:
    """Whether the keys of a head may be rebuilt in pairs."""
    if head.key_norm is not None or head.rotary is None or torch.is_grad_enabled():
        return False  # rotated in place, with weights that carry no gradient
    if not head.key_up.is_plain or torch.is_autocast_enabled(query.device.type):
        return False  # keys would not be float32
    return head.rotary.turns_halves(query, angles[0])


def products_in_pairs(head: LatentHead, query: Tensor, latent: Tensor, angles: Angles) -> Tensor:
    """Products (B, H, T, S) of queries (B, H, T, D) and the keys of latents (B, S, R)."""
    paired = query.index_select(-1, _pair_order(1, head.head_dim, query.device))
    return head.products(paired, _keys_in_pairs(head, latent, angles).transpose(1, 2))


def _keys_in_pairs(head: LatentHead, latent: Tensor, angles: Angles) -> Tensor:
    """`LatentHead.keys` as (B, S, J, D), channels in pairs."""
    assert head.rotary is not None
    order = _pair_order(head.num_key_value_heads, head.head_dim, latent.device)
    # The rows are copied anew each time: they may be written to behind anybody's back.
    k = head.key_up.in_order(head.key_channels(latent), order)
    turn_pairs_(k, head.rotary.turns(*angles))
    return k


@cache
def _pair_order(num_heads: int, head_dim: int, device: torch.device) -> Tensor:
    """Where each channel of all heads, in pairs, lies among those that are not."""
    with lasting_tensors():
        channels = torch.arange(num_heads * head_dim, device=device)
        return in_pairs(channels.view(num_heads, head_dim)).flatten()
