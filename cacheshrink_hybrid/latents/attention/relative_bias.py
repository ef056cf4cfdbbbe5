"""A bias that attention adds to its scores by how far a key lies before its query (T5).

Every head has a number for each bucket of distances: small distances have buckets of their own, and
larger ones share them by their logarithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotSupportedError
from .cached_layer import Slots
from .parts import AttentionParts


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasedParts(AttentionParts):
    """Attention of a decoder whose scores have a bias by distance.

    Attributes:
        bias_table: that bias by bucket and head, (buckets, H); None in a layer that is given the
            bias of an earlier one.
        max_distance: from here on all distances are in the last bucket.
    """

    bias_table: nn.Embedding | None
    max_distance: int


def bucket_of(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Buckets of distances, int64 of any shape and at least 0."""
    exact = num_buckets // 2
    ratio = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    shared = exact + (ratio * (num_buckets - exact)).long()
    return torch.where(distance < exact, distance, shared.clamp(max=num_buckets - 1))


def bias_of(table: nn.Embedding, max_distance: int, num_new: int, slots: Slots) -> Tensor:
    """The bias (1, H, T, S) of T new tokens and the S slots that they read. What lies behind a
    query, which it does not see, has that of the query itself."""
    device = table.weight.device
    query = torch.arange(num_new, device=device)[:, None] + slots.first_query
    key = torch.arange(slots.num_keys, device=device) + slots.first_key
    buckets = bucket_of((query - key).clamp(min=0), table.num_embeddings, max_distance)
    return table(buckets).permute(2, 0, 1)[None]


def with_bias(mask: Any, bias: Tensor, slots: Slots) -> Tensor:
    """An additive mask (B or 1, H, T, S) that says as well what a mask says.

    Args:
        mask: boolean (True is visible) or additive, (B or 1, 1, T, S); None for causal.
        bias: (1, H, T, S), of the type of the scores.
        slots: of the queries and keys.

    Raises:
        NotSupportedError: a mask in another form.
    """
    least = torch.finfo(bias.dtype).min
    if mask is None:
        query = torch.arange(bias.shape[2], device=bias.device)[:, None] + slots.first_query
        mask = torch.arange(bias.shape[3], device=bias.device) + slots.first_key <= query
    elif not (isinstance(mask, Tensor) and mask.ndim == 4):
        raise NotSupportedError(
            "scores with a bias by distance need attention masks as 4-d tensors, and this "
            f"attention implementation makes a {type(mask).__name__}; use attn_implementation "
            "'sdpa' or 'eager'"
        )
    mask = mask[..., : bias.shape[3]]
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, least)
    return (bias + mask).clamp(min=least)
