"""Attention of a decoder over what an encoder puts out, of which latents are cached.

An encoder's output does not grow. In the first pass of a sequence every layer makes its latents,
one per vector, and stores them; later passes read these and append nothing. Each query sees all of
them but those that the encoder's mask hides.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache

from ...cache_argument import take_cache
from ...codecs.straight_through import straight_through
from ...errors import NotSupportedError
from .argument_names import (
    BIAS_ARGUMENT,
    ENCODED_ARGUMENTS,
    MASK_ARGUMENTS,
    hands_on_bias,
    take_named,
)
from .cached_layer import CachedLayer, Slots
from .context import DenseContext
from .dense_read import MAX_DECODE_TOKENS
from .expanded_attention import attend_expanded
from .head import LatentHead
from .module import LatentAttention
from .parts import AttentionParts


class CrossAttention(LatentAttention):
    """`LatentAttention` whose latents are of an encoder's output, (B, S, E), and whose queries are
    of the decoder's tokens, (B, T, E).

    None of its rows is the first or the most recent one of anything, so that none stays exact.
    """

    name_prefix = "Cross"

    def __init__(self, parts: AttentionParts, plan: Any, *, keep_source: bool = False):
        super().__init__(parts, plan, keep_source=keep_source)
        self.is_causal = False
        self.hands_on_bias = hands_on_bias(parts.source)

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> tuple:
        """Attend over the encoder's output.

        Args:
            hidden_states: (B, T, E), after the layer's norm.
            kwargs: by any name of `ENCODED_ARGUMENTS`, what the encoder puts out, (B, S, E), which
                is not looked at where a cache holds its latents; by any of `MASK_ARGUMENTS`, the
                mask of the S vectors, as the configured attention function takes it; by any of
                `CACHE_ARGUMENTS`, the cache, whose cross-attention part is filled in the first
                pass; and what the attention function takes. There is no bias by distance between a
                text and an encoder's output: one that is handed on is of zeros.

        Returns:
            Output (B, T, E), None in the place of a bias where layers hand one on, and
            probabilities (B, H, T, S) where they were formed, else None.

        Raises:
            NotSupportedError: no encoder's output, or a cache without a part for it.
        """
        if self.compression_disabled:
            assert self.source_attention is not None
            return self.source_attention(hidden_states, *args, **kwargs)
        if args:
            raise TypeError("CrossAttention takes its arguments by name, except hidden_states")
        cache, encoded = take_cache(kwargs), take_named(ENCODED_ARGUMENTS, kwargs)
        mask = take_named(MASK_ARGUMENTS, kwargs)
        kwargs.pop(BIAS_ARGUMENT, None)
        head = self.head
        query, _ = self._query(head, hidden_states, self._layer_idx, None)
        latent = self._context(head, encoded, cache, query.dtype)
        mask = self._everything(latent, query) if mask is None else mask
        context = DenseContext(
            latent=latent,
            slots=Slots(0, 0, latent.shape[1]),
            num_new=query.shape[2],
            query_angles=None,
            key_angles=None,
        )
        attend = partial(attend_expanded, self, head, **kwargs)
        output, weights = context.read(head, query, mask, attend, training=self.training)
        output = self.o_proj(output)
        if self.residual_dropout is not None:
            output = self.residual_dropout(output)
        return (output, None, weights) if self.hands_on_bias else (output, weights)

    @property
    def _layer_idx(self) -> int:
        assert self.layer_idx is not None, "no two layers share cross-attention"
        return self.layer_idx

    def _context(
        self, head: LatentHead, encoded: Tensor | None, cache: Any, dtype: torch.dtype
    ) -> Tensor:
        """Latents (B, S, R) of the encoder's output (B, S, E), as they are read back; stored, if
        the cache holds none yet."""
        layer_idx = self._layer_idx
        if cache is not None and not isinstance(cache, EncoderDecoderCache):
            raise NotSupportedError(
                f"layer {layer_idx} reads an encoder's output, for which a {type(cache).__name__} "
                "has no part; give an EncoderDecoderCache, such as make_cache(model)"
            )
        if cache is not None and cache.is_updated.get(layer_idx):
            stored = cache.cross_attention_cache.layers[layer_idx].keys[:, 0]
            return head.decoded(stored, dtype).to(dtype)
        if encoded is None:
            raise NotSupportedError(
                f"layer {layer_idx} was given no output of an encoder, and none is cached; call "
                "the whole model, or give encoder_outputs"
            )
        latent = self.latent(encoded, layer_idx)
        layer = CachedLayer(None if cache is None else cache.cross_attention_cache, layer_idx)
        stored, _ = layer.append(head.encoded(latent, layer.coding_on(latent.device)))
        if cache is not None:
            cache.is_updated[layer_idx] = True
        return straight_through(latent, head.decoded(stored, dtype).to(dtype))

    def _everything(self, latent: Tensor, query: Tensor) -> Tensor | None:
        """A mask (1, 1, 1, S) that hides nothing, where none would mean that queries see what comes
        before them; attention functions of torch ask `is_causal`."""
        eager = self.config._attn_implementation == "eager"
        if query.shape[2] > MAX_DECODE_TOKENS and not eager:
            return None
        return torch.ones(1, 1, 1, latent.shape[1], dtype=torch.bool, device=latent.device)
