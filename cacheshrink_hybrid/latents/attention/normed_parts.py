"""The parts of an attention module whose values go through a norm before they are cached."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .parts import AttentionParts


@dataclass(frozen=True, slots=True, kw_only=True)
class NormedParts(AttentionParts):
    """One such module, taken apart.

    y = [k; v] is what its norms give: keys as well, so that no norm is left for whoever reads them
    (`k_norm` is None). Where keys and values come from one projection, `key` and `value` are the
    same, and what their norms make of it differs by factors of channels alone.

    Attributes:
        cached_norms: names of the norms of keys and values; over one head's width each.
    """

    cached_norms: tuple[str, str]

    @property
    def is_linear(self) -> bool:
        return False

    @property
    def observed(self) -> tuple[tuple[str, Tensor | None], tuple[str, Tensor | None]]:
        key, value = self.cached_norms
        return (key, None), (value, None)

    def norms(self) -> tuple[nn.Module, nn.Module]:
        """Of keys and values."""
        key, value = (getattr(self.source, name) for name in self.cached_norms)
        return key, value

    def key_value(self, x: Tensor, layer_idx: int) -> Tensor:
        """[k; v] of inputs x (..., E) behind their norms, (..., J*(D + Dv))."""
        halves = []
        for projection, norm in zip((self.key, self.value), self.norms(), strict=True):
            y = nn.functional.linear(x, projection.weight(), projection.bias())
            heads = y.unflatten(-1, (self.num_key_value_heads, -1))
            # The class's forward, so that hooks which watch the source's own passes do not run.
            halves.append(type(norm).forward(norm, heads).flatten(-2))
        return torch.cat(halves, dim=-1)

    def white_weight(self) -> Tensor:
        """As of projections; a norm is taken as division by what a head's length is on average."""
        halves = []
        for projection, norm in zip((self.key, self.value), self.norms(), strict=True):
            heads = projection.weight().unflatten(0, (self.num_key_value_heads, -1))  # (J, D, E)
            gains = type(norm).forward(norm, torch.ones_like(heads[..., 0]))
            length = heads.square().sum(2).mean(1).sqrt()
            halves.append((gains[..., None] * heads / length[:, None, None]).flatten(0, 1))
        return torch.cat(halves)

    def white_mean(self) -> Tensor:
        """[k; v] of an input of zeros: of the biases."""
        with torch.no_grad():
            nothing = self.key.weight().new_zeros(self.key.weight().shape[1])
            return self.key_value(nothing, self.layer_ids[0]).to("cpu", torch.float64)
