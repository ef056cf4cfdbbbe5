"""Attention whose latents are made of what the source would cache, by one more matrix.

Where norms come before the cache, y is no linear function of the input, so that no encoder can be
folded into the source's projections. These and their norms stay, and `kv_a_proj` (width of y -> R)
makes latents of y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotSupportedError
from ..plan import LatentPlan
from .module import LatentAttention
from .normed_parts import NormedParts


class EncodedLatentAttention(LatentAttention):
    """Drop-in replacement of such attention; arguments are those of `LatentAttention`."""

    def remembered(self, x: Tensor, layer_idx: int) -> tuple[Tensor | None, Tensor | None]:
        key_value = self.key_value(x, layer_idx)
        return None if self.plan.kind.stores_rotated else self.kv_a_proj(key_value), key_value

    def latent(self, x: Tensor, layer_idx: int) -> Tensor:
        return self.kv_a_proj(self.key_value(x, layer_idx))


class NormedLatentAttention(EncodedLatentAttention):
    """Drop-in replacement of attention with norms of keys and values, of `NormedParts`: what it
    stores are both behind their norms."""

    def _take_projections(self, parts: Any, plan: LatentPlan, new: dict) -> int:
        assert isinstance(parts, NormedParts)
        self.q_proj, self.kv_proj = parts.query.as_linear(), None
        self._projections = tuple(dict.fromkeys((parts.key.name, parts.value.name)))
        self._norms = parts.cached_norms
        for projection in (parts.key, parts.value):
            setattr(self, projection.name, projection.module)
        for name, norm in zip(parts.cached_norms, parts.norms(), strict=True):
            setattr(self, name, norm)
        return parts.width

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        """As `LatentAttention.forward`.

        Raises:
            NotSupportedError: keys and values are asked for by another model.
        """
        if kwargs.get("return_shared_kv_states") and not self.compression_disabled:
            raise NotSupportedError(
                "return_shared_kv_states=True asks for keys and values, as an assistant model "
                "reads them, and a converted model has latents; use an assistant with a cache of "
                "its own"
            )
        return super().forward(hidden_states, *args, **kwargs)

    def key_value(self, x: Tensor, layer_idx: int) -> Tensor:
        """[k; v] behind their norms, (B, T, J*(D + Dv))."""
        made = [getattr(self, name)(x) for name in self._projections]
        heads = [y.unflatten(-1, (self.head.num_key_value_heads, -1)) for y in made]
        first, last = (getattr(self, name) for name in self._norms)
        return torch.cat([first(heads[0]).flatten(-2), last(heads[-1]).flatten(-2)], dim=-1)

    @property
    def read_norm(self) -> nn.Module | None:
        return None
