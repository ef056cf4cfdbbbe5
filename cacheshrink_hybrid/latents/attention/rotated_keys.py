"""Keys that are stored rotated by their place in a block of slots, met without a key being rebuilt.

Slot s = b + j is place j of the block that begins at slot b. Stored of it is the latent of
R_j (k - m) and v. With the query turned back to the block, once for all its slots, a score is

    q . R_s k = (R_-b q) . R_j k = (U_k^T R_-b q) . c + (R_-b q) . (R_j m)

The second part needs no memory of the token: one table of R_j m serves all blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .head import LatentHead


def products_in_blocks(head: LatentHead, query: Tensor, latent: Tensor, first_slot: int) -> Tensor:
    """Products (B, H, T, S) of queries (B, H, T, D), rotated by their slots, and the keys of
    latents (B, S, R) of the slots from `first_slot` on."""
    assert head.rotary is not None
    B, H, T, D = query.shape
    J, num_slots, block = head.num_key_value_heads, latent.shape[1], head.plan.block_slots
    before = first_slot % block
    num_blocks = -(-(before + num_slots) // block)
    cos, sin = head.rotary.angles(first_slot + num_slots, query)
    starts = slice(first_slot - before, None, block)
    asked = query.reshape(B, H * T, 1, D).expand(-1, -1, num_blocks, -1)
    asked = head.rotary.rotate(asked, cos[:, starts], -sin[:, starts])
    asked = asked.view(B, J, -1, D)  # (B, J, G * T * blocks, D)

    weight, _ = head.key_up.matrix(query)
    absorbed = torch.matmul(asked, weight).view(B, H * T, num_blocks, -1).transpose(1, 2)
    after = num_blocks * block - before - num_slots
    channels = nn.functional.pad(head.key_channels(latent), (0, 0, before, after))
    blocks = channels.unflatten(1, (num_blocks, block))
    products = torch.matmul(absorbed, blocks.transpose(2, 3)).transpose(1, 2)  # (B, H * T, ...)
    of_mean = torch.matmul(asked, head.mean_in_block(query).transpose(2, 3)).view_as(products)
    products = (products + of_mean).flatten(2)[..., before : before + num_slots]
    return products.view(B, H, T, num_slots)
