"""Latent attention with a bias of scores by distance (`relative_bias`), which reaches whoever reads
the latents as part of the mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...cache_argument import given_cache, of_own_tokens
from ...errors import NotSupportedError
from ..plan import LatentPlan
from .argument_names import BIAS_ARGUMENT, MASK_ARGUMENTS, hands_on_bias, take_named
from .cached_layer import CachedLayer, Slots
from .module import LatentAttention
from .relative_bias import BiasedParts, bias_of, with_bias


class BiasedAttention(LatentAttention):
    """Drop-in replacement of T5's attention. Arguments are those of `LatentAttention`, with
    `BiasedParts`.

    Attributes:
        hands_on_bias: it takes the bias of an earlier layer, and gives out what it has added.
    """

    def _take_projections(self, parts: Any, plan: LatentPlan, new: dict) -> int:
        assert isinstance(parts, BiasedParts)
        if parts.bias_table is not None:
            self.relative_attention_bias = parts.bias_table
        self.max_distance = parts.max_distance
        self.hands_on_bias = hands_on_bias(parts.source)
        return super()._take_projections(parts, plan, new)

    def _standing(
        self, num_heads: int, head_dim: int, v_head_dim: int, norms_follow: bool
    ) -> dict[str, Any]:
        own = super()._standing(num_heads, head_dim, v_head_dim, norms_follow)
        return own | {"biased": True}

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> tuple:
        """As `LatentAttention.forward`.

        Args:
            kwargs: the mask under any name of `MASK_ARGUMENTS`, and the bias of an earlier layer,
                (1, H, T, S), as `position_bias`.

        Returns:
            Output (B, T, E), the bias if layers hand it on, and probabilities or None.

        Raises:
            NotSupportedError: a layer without a bias of its own is given none.
        """
        if self.compression_disabled:
            assert self.source_attention is not None
            return self.source_attention(hidden_states, *args, **kwargs)
        mask, given = take_named(MASK_ARGUMENTS, kwargs), kwargs.pop(BIAS_ARGUMENT, None)
        assert self.layer_idx is not None, "no two layers share attention with a bias"
        layer = CachedLayer(of_own_tokens(given_cache(kwargs)), self.layer_idx)
        slots = layer.slots(hidden_states.shape[1])
        bias = self._bias(hidden_states.shape[1], slots) if given is None else given
        bias = bias.to(hidden_states.dtype)
        output, weights = super().forward(
            hidden_states, *args, attention_mask=with_bias(mask, bias, slots), **kwargs
        )
        return (output, bias, weights) if self.hands_on_bias else (output, weights)

    def _bias(self, num_new: int, slots: Slots) -> Tensor:
        table = getattr(self, "relative_attention_bias", None)
        if table is None:
            raise NotSupportedError(
                f"layer {self.layer_idx} adds to its scores the bias that an earlier layer has "
                "found, and was given none; call the whole model"
            )
        return bias_of(table, self.max_distance, num_new, slots)
