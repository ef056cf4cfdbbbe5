"""The baseline to beat: keys and values as they are, every element with the same few bits.

Each head's key and value of a token is scaled by its largest magnitude, stored as one float16, and
rounded to a signed integer: what plain int8 and int4 KV caches do. The cache keeps the rounded
values in the model's dtype; `bytes_per_token` says what their integers and scales would take.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..families import model_spec

SCALE_BYTES = 2


def uniform_kv_bytes_per_token(model: PreTrainedModel, bits: int) -> int:
    """Bytes per token of integer keys and values with one float16 scale per head and token."""
    total = 0
    for layer in model_spec(model.config).attention_layers:
        assert layer.attention is not None
        heads = layer.attention.num_key_value_heads
        for width in (layer.attention.key_width, layer.attention.value_width):
            total += width * bits // 8 + heads * SCALE_BYTES
    return total


class UniformKVCache(DynamicCache):
    """A `DynamicCache` that rounds what it is given to `bits` bits per element.

    Args:
        model: the uncompressed model that writes to it.
        bits: 8 or 4.
    """

    def __init__(self, model: PreTrainedModel, bits: int) -> None:
        super().__init__(config=model.config.get_text_config(decoder=True))
        self.bits = bits

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        return super().update(
            rounded(key_states, self.bits),
            rounded(value_states, self.bits),
            layer_idx,
            *args,
            **kwargs,
        )


def rounded(x: Tensor, bits: int) -> Tensor:
    """x (..., D) rounded to signed integers of `bits` bits under a float16 scale per row."""
    largest = 2 ** (bits - 1) - 1
    scale = (x.abs().amax(dim=-1, keepdim=True) / largest).half().to(x.dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (x / scale).round().clamp(-largest, largest) * scale
