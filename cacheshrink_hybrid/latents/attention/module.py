"""Attention that caches a latent per token instead of keys and values.

Per token the module stores c = E (y - mean) of y = [k; v], R numbers, as one 1-headed "key", so
every cache of transformers holds it as it is; the "value" is empty, or holds exact rows
(`exact_tokens`). Reading follows the plan (`head`):

    absorb       scores (U_k^T q) . c, output U_v (sum p c)            no rotation, no key norm
    reconstruct  k = rotate(norm(U_k c + mean)), scores q . k, output U_v (sum p c)
    decoupled    as absorb, with a rotary key for all heads among the channels (`rotary_key`)
    rotate       as absorb, with keys rotated by their place in a block of slots before they are
                 stored, and queries turned back to each block

Every query reads latents, also those of its own chunk, so the result does not depend on how a
sequence is cut into chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ...cache_argument import of_own_tokens, take_cache
from ...derived_class import Derived
from ..plan import LatentPlan
from .adapters import low_rank_additions
from .attend import attend_by_kernels, attend_by_torch
from .cached_layer import CachedLayer
from .causal_window import within_window
from .context import DenseContext, HandedOn, PoolContext, hand_on
from .expanded_attention import attend_expanded
from .head import LatentHead
from .kept_source import KeepsSource
from .key_projection import key_shares, make_key_projection
from .maps import HeadMap
from .parts import AttentionParts
from .split_heads import gated_heads, split_query


class LatentAttention(Derived, KeepsSource):
    """Drop-in replacement of a source attention module, built from its parts and a plan.

    Weights that do not concern the cache (queries, output, norms, sinks) are the source's own
    modules. New ones: `kv_a_proj` (E -> R) makes the latent, `k_b_proj` (Rk -> J*D) and `v_b_proj`
    (Rv -> J*D) undo it; their biases carry the means. Where tokens stay exact, or keys are stored
    rotated, `kv_proj` (E -> 2*J*D) makes keys and values, as the source does; in the latter case
    `kv_a_proj` (2*J*D -> R) makes the latent of these, about `kv_mean`, once they are rotated.

    Args:
        parts: the source module, taken apart.
        plan: ranks and read mode.
        keep_source: register the source module as `source_attention`, for `compression_disabled`.

    Attributes:
        replaced_names, new_names: of projections that the source has and this module has not, and
            the other way round.
        is_read_by_others: other layers of the model read what this one stores.
    """

    name_prefix = "Latent"

    def __init__(self, parts: AttentionParts, plan: LatentPlan, *, keep_source: bool = False):
        nn.Module.__init__(self)
        weight = parts.key.weight()
        J, D = parts.num_key_value_heads, parts.head_dim
        new = {"device": weight.device, "dtype": weight.dtype}
        self.config = parts.config
        self.layer_idx = parts.layer_ids[0] if len(parts.layer_ids) == 1 else None
        self.plan = plan
        self.num_key_value_groups = parts.num_attention_heads // J
        self.is_causal = True
        self.gated = parts.gated
        self.query_scale = parts.query_scale
        self.scales_by_slot = parts.scales_by_slot
        self.narrows_mask = parts.narrows_mask
        self.is_read_by_others = bool(parts.readers)
        self.dropout = parts.dropout
        costs = torch.empty(plan.kv_lora_rank, **new)
        self.latent_costs = nn.Parameter(costs, requires_grad=False) if plan.coded else None

        rotates = plan.kind.stores_rotated
        self.k_norm = parts.k_norm
        encoded = self._take_projections(parts, plan, new)
        self.kv_a_proj = skip_init(nn.Linear, encoded, plan.kv_lora_rank, bias=not rotates, **new)
        self.kv_mean = None
        if rotates:
            self.kv_mean = nn.Parameter(torch.empty(parts.width, **new), requires_grad=False)
        self.k_b_proj = make_key_projection(plan, J, D, new)
        self.v_b_proj = skip_init(nn.Linear, plan.value_rank, parts.value_width, **new)
        self.o_proj, self.o_norm = parts.output, parts.output_norm
        self.gate_proj = parts.gate
        self.q_norm = parts.q_norm
        self.sinks = parts.sinks
        self.residual_dropout = parts.residual_dropout
        self.q_adapters, self.kv_a_adapters, self.kv_adapters = low_rank_additions(parts, plan, new)
        if parts.rotary is not None:  # now, rather than within a graph
            parts.rotary.try_formula(D, weight.dtype, weight.dtype)
        self._head = LatentHead(
            num_attention_heads=parts.num_attention_heads,
            num_key_value_heads=J,
            head_dim=D,
            scale=parts.scaling,
            softcap=parts.softcap,
            window=parts.sliding_window,
            in_chunks=parts.in_chunks,
            norm_spans_heads=parts.norm_spans_heads,
            norms_follow_rotation=parts.norms_follow_rotation,
            rotary=parts.rotary,
            **self._standing(J, D, parts.value_width // J, parts.norms_follow_rotation),
        )
        old, own = _projections(parts.source), _projections(self)
        self.replaced_names = tuple(name for name in old if name not in own)
        self.new_names = tuple(name for name in own if name not in old)
        self.keep_source(parts.source if keep_source else None)
        self.train(parts.source.training)

    def _take_projections(self, parts: Any, plan: LatentPlan, new: dict) -> int:
        """Take over, or make, what inputs go through before they are encoded, and what makes
        queries; returns the width that is encoded."""
        inputs, encodes_key_value = parts.key.weight().shape[1], plan.kind.stores_rotated
        self.q_proj = parts.query.as_linear()
        self.kv_proj = None
        if encodes_key_value or plan.keeps_exact:
            bias = parts.key.bias() is not None or parts.value.bias() is not None
            self.kv_proj = skip_init(nn.Linear, inputs, parts.width, bias=bias, **new)
        return parts.width if encodes_key_value else inputs

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those that the source does not have."""
        for module in (
            self.kv_a_proj,
            self.kv_proj,
            self.k_b_proj,
            self.v_b_proj,
            self.kv_a_adapters,
            self.kv_adapters,
        ):
            if module is not None:
                yield from module.parameters()
        for parameter in (self.kv_mean, self.latent_costs):
            if parameter is not None:
                yield parameter

    def freeze_as(self, parts: AttentionParts) -> None:
        """Let new projections train where what they stand for does."""
        key, value = (p.module.weight.requires_grad for p in (parts.key, parts.value))
        self.kv_a_proj.requires_grad_(key or value)
        if self.kv_proj is not None:
            self.kv_proj.requires_grad_(key or value)
        self.k_b_proj.requires_grad_(key)
        self.v_b_proj.requires_grad_(value)

    def forward(
        self,
        hidden_states: Tensor,
        *args,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        layer_idx: int | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over the cache and the T new tokens.

        Args:
            hidden_states: (B, T, E), after the layer's norm.
            position_embeddings: cos and sin of the new tokens, (B, T, rotary dim) each, or complex
                numbers as `as_angles` takes them.
            attention_mask: as the configured attention function takes it.
            layer_idx: cache layer, for modules that serve several.
            kwargs: the cache of latents, updated in place, under any name of `CACHE_ARGUMENTS`; and
                what the attention function takes.

        Returns:
            Output (B, T, E), and probabilities (B, H, T, S) where they were formed, else None.
        """
        cache = take_cache(kwargs)
        if self.compression_disabled:
            given = {
                "position_embeddings": position_embeddings,
                "attention_mask": attention_mask,
                "layer_idx": layer_idx,
            }
            return self.of_source(hidden_states, args, cache, given, kwargs)
        if args:
            raise TypeError("LatentAttention takes its arguments by name, except hidden_states")
        shared = kwargs.pop("shared_kv_states", None)
        layer_idx = self.layer_idx if layer_idx is None else layer_idx
        assert layer_idx is not None, "a shared module is called with its layer_idx"
        head, layer = self.head, CachedLayer(of_own_tokens(cache), layer_idx)
        position_ids = kwargs.get("position_ids")
        if head.rotary is not None:
            position_embeddings = head.rotary.given_angles(
                position_embeddings, position_ids, hidden_states
            )
        num_new = hidden_states.shape[1]
        if self.scales_by_slot:
            first = layer.slots(num_new).first_query
            scaled = (torch.arange(num_new, device=hidden_states.device) + first)[None]
        else:
            scaled = position_ids
        query, gate = self._query(head, hidden_states, layer_idx, scaled)
        if self.narrows_mask:
            attention_mask = within_window(attention_mask, head, hidden_states, layer)
        latent, source = self.remembered(hidden_states, layer_idx)
        step = layer.row_step(head, self, hidden_states, attention_mask)
        weights = None
        context: DenseContext | PoolContext
        if step is not None:
            output, context = attend_by_kernels(
                head, query, latent, source, layer, position_embeddings, step
            )
        else:
            output, weights, context = attend_by_torch(
                head,
                query,
                latent,
                source,
                layer,
                position_embeddings,
                position_ids,
                attention_mask,
                partial(attend_expanded, self, head, **kwargs),
                training=self.training,
            )
        if self.is_read_by_others and shared is not None:
            hand_on(shared, layer_idx, HandedOn(head, context))
        if gate is not None:
            output = gated_heads(output, gate)
        if self.o_norm is not None:
            output = self.o_norm(output)
        output = self.o_proj(output)
        if self.residual_dropout is not None:
            output = self.residual_dropout(output)
        return output, weights

    @property
    def head(self) -> LatentHead:
        """What readers see of this module: kept until another plan, module or parameter stands in
        the place of one that it was made of."""
        kept = self._head
        if (
            kept.plan is self.plan
            and kept.key_up.projection is self.k_b_proj
            and kept.value_up.projection is self.v_b_proj
            and kept.key_norm is self.read_norm
            and (kept.query_norm is None or kept.query_norm is self.q_norm)
            and kept.sinks is self.sinks
            and kept.costs is self.latent_costs
            and kept.mean is self.kv_mean
            and (kept.encoder is None or kept.encoder is self.kv_a_proj)
            and self._expands_as(kept)
        ):
            return kept
        sizes = kept.num_key_value_heads, kept.head_dim, kept.v_head_dim
        made = replace(kept, **self._standing(*sizes, kept.norms_follow_rotation))
        if not torch.compiler.is_compiling():
            self._head = made
        return made

    @property
    def read_norm(self) -> nn.Module | None:
        """The norm of keys that is left for whoever reads them."""
        return self.k_norm

    def _expands_as(self, kept: LatentHead) -> bool:
        """Whether a head's `expansion` is still the module's."""
        return True

    def _standing(
        self, num_heads: int, head_dim: int, v_head_dim: int, norms_follow: bool
    ) -> dict[str, Any]:
        """The parts of a head that another plan, module or parameter of this one replaces."""
        plan = self.plan
        key_up = HeadMap(
            name="k_b_proj",
            projection=self.k_b_proj,
            num_heads=num_heads,
            head_dim=head_dim,
            num_channels=plan.key_rank,
            shares=key_shares(plan, num_heads),
        )
        value_up = HeadMap(
            name="v_b_proj",
            projection=self.v_b_proj,
            num_heads=num_heads,
            head_dim=v_head_dim,
            num_channels=plan.value_rank,
        )
        return {
            "plan": plan,
            "key_up": key_up,
            "value_up": value_up,
            "encoder": self.kv_a_proj if plan.kind.stores_rotated else None,
            "mean": self.kv_mean,
            "key_norm": self.read_norm,
            "query_norm": self.q_norm if norms_follow else None,
            "sinks": self.sinks,
            "codec": plan.codec() if plan.coded else None,
            "costs": self.latent_costs,
            "exact_codec": plan.exact_codec() if plan.keeps_exact else None,
        }

    def remembered(self, x: Tensor, layer_idx: int) -> tuple[Tensor | None, Tensor | None]:
        """`latent`, None where keys are stored rotated, and `key_value` of inputs (B, T, E)."""
        latent = None if self.plan.kind.stores_rotated else self.latent(x, layer_idx)
        return latent, self.key_value(x, layer_idx)

    def latent(self, x: Tensor, layer_idx: int) -> Tensor:
        """Latents (B, T, R), as they are before they are stored, of inputs (B, T, E). Those whose
        keys are rotated `LatentHead.latent_in_block` makes."""
        latent = self.kv_a_proj(x)
        if self.kv_a_adapters is not None:
            latent = latent + self.kv_a_adapters[str(layer_idx)](x)
        return latent

    def key_value(self, x: Tensor, layer_idx: int) -> Tensor | None:
        """[k; v] as the source's projections give them, (B, T, 2*J*D), of inputs (B, T, E); None
        where no token stays exact and no keys are stored rotated."""
        if self.kv_proj is None:
            return None
        y = self.kv_proj(x)
        if self.kv_adapters is not None:
            y = y + self.kv_adapters[str(layer_idx)](x)
        return y

    def _query(
        self, head: LatentHead, x: Tensor, layer_idx: int, position_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Queries before rotation (B, H, T, D), and the gate (B, T, H*D), (B, T, H) or None."""
        q = self.q_proj(x)
        if self.q_adapters is not None:
            q = q + self.q_adapters[str(layer_idx)](x)
        norm = None if head.norms_follow_rotation else self.q_norm
        query, gate = split_query(q, head.head_dim, norm, head.norm_spans_heads, gated=self.gated)
        if self.query_scale is not None:
            assert position_ids is not None
            query = query * self.query_scale(position_ids).to(query.dtype)
        return query, gate if self.gate_proj is None else self.gate_proj(x)


def _projections(module: nn.Module) -> list[str]:
    """Names of the children with a weight that is a matrix."""
    weights = {name: getattr(child, "weight", None) for name, child in module.named_children()}
    return [name for name, weight in weights.items() if weight is not None and weight.ndim > 1]
