"""A sliding window that a model applies in its attention, behind masks that say nothing of it."""

from __future__ import annotations

import torch
from torch import Tensor

from .cached_layer import CachedLayer
from .head import LatentHead


def within_window(
    mask: Tensor | None, head: LatentHead, hidden: Tensor, layer: CachedLayer
) -> Tensor:
    """A mask (B or 1, 1, T, S), boolean or additive, that also hides what lies before each query's
    window; one of causal attention within it in the place of None.

    Args:
        hidden: of the new tokens, (B, T, E), which are the last of the S slots.
        layer: that they are not appended to yet.
    """
    assert head.window is not None
    num_new = hidden.shape[1]
    num_keys = layer.slots(num_new).num_keys if mask is None else mask.shape[-1]
    key = torch.arange(num_keys, device=hidden.device)
    query = torch.arange(num_keys - num_new, num_keys, device=hidden.device)[:, None]
    near = (key > query - head.window)[None, None]
    if mask is None:
        return near & (key <= query)
    if mask.dtype == torch.bool:
        return mask & near
    return mask.masked_fill(~near, torch.finfo(mask.dtype).min)
