"""Keys that are stored rotated about their mean, met without a key being rebuilt.

Stored of slot s is R_s (k - m), and so a score is the product with the stored channels, plus the
part q . (R_s m) of the mean m, which no memory of the token is needed for. Within a block of slots
that begins at slot b that part is (R_-b q) . (R_j m): one table of R_j m serves all blocks, and the
query is turned back once per block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...headwise_linear import by_head
from .head import LatentHead
from .rotation import Angles, turned_back

BLOCK_SLOTS = 64


def products_with_rotated(
    head: LatentHead, query: Tensor, latent: Tensor, angles: Angles
) -> Tensor:
    """Products (B, H, T, S) of rotated queries (B, H, T, D) and the keys of latents (B, S, R).

    Args:
        angles: of the S slots, one after the other wherever there are more than `BLOCK_SLOTS`.
    """
    absorbed, _ = head.absorbed(query, offset=False)
    shares = head.key_up.shares
    assert shares is not None
    own = by_head(head.key_channels(latent), head.num_key_value_heads, shares)
    products = torch.matmul(head.grouped(absorbed), own.permute(0, 2, 3, 1))
    return products.view(*query.shape[:3], -1) + mean_products(head, query, angles)


def mean_products(head: LatentHead, query: Tensor, angles: Angles) -> Tensor:
    """The mean's part of `products_with_rotated`, (B, H, T, S)."""
    num_slots = angles[0].shape[1]
    if num_slots <= BLOCK_SLOTS:
        return head.products(query, head.rotated_mean(query, angles))
    assert head.rotary is not None
    B, H, T, D = query.shape
    table = head.rotated_mean(query, head.rotary.angles(BLOCK_SLOTS, query))
    cos, sin = turned_back(*(angle[:, ::BLOCK_SLOTS] for angle in angles))
    num_blocks = cos.shape[1]
    asked = query.reshape(B, H * T, 1, D).expand(-1, -1, num_blocks, -1)
    asked = head.rotary.rotate(asked, cos, sin).view(B, H, T * num_blocks, D)
    return head.products(asked, table).view(B, H, T, -1)[..., :num_slots]
