"""The attention function that a model is configured with, for keys and values that stand whole."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .dense_read import probabilities_of
from .head import LatentHead


def attend_expanded(
    module: Any, head: LatentHead, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs
) -> tuple[Tensor, Tensor | None]:
    """The attention function that a model is configured with: (B, T, H, D), and probabilities where
    it gives them.

    Args:
        module: whose attention it is, with a config, a dropout and what such functions look for.
        head: with the options of scores.
        query, key, value: (B, H, T, D) and (B, J, S, D).
        mask: as the function takes it.
        kwargs: further arguments of it.
    """
    implementation = module.config._attn_implementation
    if isinstance(mask, Tensor) and mask.ndim == 4 and implementation != "eager":
        # Others take no such masks, which exact tokens need, and SDPA has neither of these.
        plain = head.softcap is None and head.sinks is None
        implementation = "sdpa" if plain else "eager"
    if head.softcap is not None and implementation == "sdpa":
        implementation = "eager"
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, partial(eager_attention, head))
    options = {"softcap": head.softcap, "s_aux": head.sinks}
    return attend(
        module,
        query,
        key,
        value,
        mask,
        dropout=module.dropout if module.training else 0.0,
        scaling=head.scale,
        sliding_window=head.window,
        **{name: option for name, option in options.items() if option is not None},
        **kwargs,
    )


def eager_attention(
    head: LatentHead,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """The attention formula with all options of a head, written out: (B, T, H, D) and (B, H, T, S).

    Args:
        module: that is in training or not. What else the interface passes repeats the head's
            options.
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    probabilities = probabilities_of(head, torch.matmul(query, key.transpose(2, 3)), attention_mask)
    dropped = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), probabilities
