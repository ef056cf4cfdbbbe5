"""Attention that caches latents of its own (DeepSeek's MLA), with a latent made of these.

The source's projections all stay. What it would cache, y = [r; c] (see `expansion`), goes through
one more matrix, `kv_a_proj` (Dr + C -> R), before it is stored, and `k_b_proj` (Rk -> Dr) and
`v_b_proj` (Rv -> C) undo it: as if y were the key and the value of one head that all queries read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..plan import LatentPlan
from .encoded import EncodedLatentAttention
from .expansion import Expansion
from .head import LatentHead
from .maps import HeadMap
from .native_parts import NativeParts
from .rotation import as_angles, in_halves


class NativeLatentAttention(EncodedLatentAttention):
    """Drop-in replacement of DeepSeek's attention. Arguments are those of `LatentAttention`, with
    `NativeParts`; projections that both have are the source's own modules."""

    kv_a_proj_with_mqa: Any
    kv_a_layernorm: Any
    kv_b_proj: Any

    def _take_projections(self, parts: Any, plan: LatentPlan, new: dict) -> int:
        assert isinstance(parts, NativeParts)
        self.num_key_value_groups = 1  # many queries meet keys of their own heads
        self.q_a_proj, self.q_a_layernorm = parts.query_down, parts.query_norm
        self.q_proj: Any = None
        self.q_b_proj: Any = None
        setattr(self, parts.query.name, parts.query.module)
        self.kv_a_proj_with_mqa, self.kv_a_layernorm = parts.key.module, parts.latent_norm
        self.kv_b_proj, self.kv_proj = parts.up, None
        self.qk_nope_head_dim = parts.qk_nope_head_dim
        self.query_multiplier = parts.query_multiplier
        self.latent_multiplier = parts.latent_multiplier
        self._turns_neighbours = parts.turns_neighbours
        return parts.width

    def _standing(
        self, num_heads: int, head_dim: int, v_head_dim: int, norms_follow: bool
    ) -> dict[str, Any]:
        own = super()._standing(num_heads, head_dim, v_head_dim, norms_follow)
        return own | {"expansion": self._expansion(v_head_dim)}

    def _expansion(self, num_channels: int) -> Expansion:
        heads = self.config.num_attention_heads
        up = HeadMap(
            name="kv_b_proj",
            projection=self.kv_b_proj,
            num_heads=heads,
            head_dim=self.kv_b_proj.out_features // heads,
            num_channels=num_channels,
        )
        return Expansion(
            up=up, qk_nope_head_dim=self.qk_nope_head_dim, multiplier=self.latent_multiplier
        )

    def _expands_as(self, kept: LatentHead) -> bool:
        return kept.expansion is not None and kept.expansion.up.projection is self.kv_b_proj

    def forward(
        self,
        hidden_states: Tensor,
        *args,
        position_embeddings: Any = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """As `LatentAttention.forward`.

        Args:
            position_embeddings: cos and sin of the new tokens, (B, T, Dr) each, or complex numbers
                as `as_angles` takes them.
        """
        if not self.compression_disabled:
            position_embeddings = as_angles(position_embeddings, hidden_states.dtype)
        return super().forward(
            hidden_states, *args, position_embeddings=position_embeddings, **kwargs
        )

    def key_value(self, x: Tensor, layer_idx: int) -> Tensor:
        """y = [r; c] as the source caches it, but for the rotation of r, (B, T, Dr + C)."""
        latent, rotary = self.kv_a_proj_with_mqa(x).tensor_split((self.head.v_head_dim,), dim=-1)
        return torch.cat([self._in_halves(rotary), self.kv_a_layernorm(latent)], dim=-1)

    def _query(
        self, head: LatentHead, x: Tensor, layer_idx: int, position_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Queries before rotation (B, H, T, Dr + Dn), and the gate (B, T, H) or None."""
        q = self.q_proj(x) if self.q_a_proj is None else self._projected_down(x)
        still, rotary = (
            q.unflatten(-1, (head.num_attention_heads, -1))
            .transpose(1, 2)
            .tensor_split((self.qk_nope_head_dim,), dim=-1)
        )
        query = torch.cat([self._in_halves(rotary), still], dim=-1)
        if self.query_multiplier != 1.0:
            query = query * self.query_multiplier
        if self.query_scale is not None:
            assert position_ids is not None
            query = query * self.query_scale(position_ids).to(query.dtype)
        return query, None if self.gate_proj is None else self.gate_proj(x)

    def _projected_down(self, x: Tensor) -> Tensor:
        assert self.q_a_proj is not None and self.q_a_layernorm is not None
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def _in_halves(self, rotary: Tensor) -> Tensor:
        """Channels (..., Dr) with those that are rotated together at i and i + Dr / 2."""
        return in_halves(rotary) if self._turns_neighbours else rotary
