"""The parts of an attention module that caches latents of its own (DeepSeek's MLA and its kin)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .parts import AttentionParts


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeParts(AttentionParts):
    """One such module, taken apart.

    As `expansion` has it, it has one key/value head: the rotary key r (Dr = `head_dim`) is its key,
    and the latent c (C = `v_head_dim`), after its norm, is its value. So y = [r; c] is what the
    source caches. `query` are rows of [n; r_q] for each head, (H * (Dn + Dr), E), or of what
    `query_norm` gives; `key` and `value` are rows of one projection, the latter before its norm.

    Attributes:
        query_down, query_norm: projection and norm before `query`; None where it reads the input.
        latent_norm: norm of the latent.
        up: from the latent to keys and values of all heads, see `Expansion`.
        qk_nope_head_dim: Dn.
        turns_neighbours: the source rotates channels (2i, 2i + 1) of a rotary key together. `key`
            has them in the order 0, 2, ..., 1, 3, ..., as pairs (i, i + Dr / 2), all the same.
        query_multiplier, latent_multiplier: constants that queries, and latents before `up`, are
            multiplied with.
    """

    query_down: nn.Module | None = None
    query_norm: nn.Module | None = None
    latent_norm: nn.Module
    up: nn.Module
    qk_nope_head_dim: int
    turns_neighbours: bool = False
    query_multiplier: float = 1.0
    latent_multiplier: float = 1.0

    @property
    def is_linear(self) -> bool:
        return False

    @property
    def observed(self) -> tuple[tuple[str, Tensor | None], tuple[str, Tensor | None]]:
        return (self.key.name, self.key.rows), ("kv_a_layernorm", None)

    def key_value(self, x: Tensor, layer_idx: int) -> Tensor:
        """y = [r; c] of inputs x (..., E), (..., Dr + C): r before its rotation."""
        rotary, latent = (
            nn.functional.linear(x, projection.weight(), projection.bias())
            for projection in (self.key, self.value)
        )
        # The class's forward, so that hooks which watch the source's own passes do not run.
        return torch.cat([rotary, type(self.latent_norm).forward(self.latent_norm, latent)], dim=-1)

    def white_weight(self) -> Tensor:
        """As of projections; the norm is taken as division by what the latent's length is on
        average."""
        rotary, latent = self.key.weight(), self.value.weight()
        probe = torch.ones_like(latent[:1, 0]).expand(1, len(latent))
        gains = type(self.latent_norm).forward(self.latent_norm, probe)[0]
        length = latent.square().sum(1).mean().sqrt()
        return torch.cat([rotary, gains[:, None] * latent / length])

    def white_mean(self) -> Tensor:
        bias = self.key.bias()
        found = torch.zeros(self.width, dtype=torch.float64)
        if bias is not None:
            found[: self.key_width] = bias.detach()
        return found
