"""Attention that caches a latent per token instead of keys and values.

Per token the module stores c = E (y - mean) of y = [k; v], R numbers, as one 1-headed "key" with an
empty "value", so every cache of transformers holds it as it is. Reading follows the plan
(`latent_read`):

    absorb       scores (U_k^T q) . c, output U_v (sum p c)            no rotation, no key norm
    reconstruct  k = rotate(norm(U_k c + mean)), scores q . k, output U_v (sum p c)
    rotate       as absorb, with key channels that were rotated before they were stored

Every query reads latents, also those of its own chunk, so the result does not depend on how a
sequence is cut into chunks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers.cache_utils import StaticLayer

from ...cache_argument import cache_argument, take_cache
from ...codecs.straight_through import newest_straight_through
from ...codecs.traced_rows import decode_rows, encode_rows
from ...derived_class import Derived
from ...errors import NotSupportedError
from ...lasting import lasting_tensors
from ...linear_map import is_plain
from ..exact_tokens import ExactTokens
from ..plan import LatentPlan
from .dense_read import read_expanded, read_latents, reads_directly, without_empty_slots
from .exact_read import first_visible_slots, read_with_exact
from .key_projection import linear_in_order, make_key_projection
from .maps import key_map, unlike_matrices
from .parts import AttentionParts
from .pooled_attention import attend_in_pool, row_step
from .slot_rotary import in_pairs, turn_channels, turn_pairs_


class LatentAttention(Derived, nn.Module):
    """Drop-in replacement of a source attention module, built from its parts and a plan.

    Weights that do not concern the cache (queries, output, norms, sinks) are the source's own
    modules. New ones: `kv_a_proj` (E -> R) makes the latent, `k_b_proj` (Rk -> J*D) and `v_b_proj`
    (Rv -> J*D) undo it; their biases carry the means.

    Args:
        parts: the source module, taken apart.
        plan: ranks and read mode.
        keep_source: register the source module as `source_attention`, for `compression_disabled`.

    Attributes:
        replaced_names, new_names: of projections that the source has and this module has not, and
            the other way round.
    """

    name_prefix = "Latent"

    def __init__(self, parts: AttentionParts, plan: LatentPlan, *, keep_source: bool = False):
        nn.Module.__init__(self)
        weight = parts.key.weight()
        new = {"device": weight.device, "dtype": weight.dtype}
        self.config = parts.source.config
        self.layer_idx = parts.layer_ids[0] if len(parts.layer_ids) == 1 else None
        self.plan = plan
        self.num_attention_heads = parts.num_attention_heads
        self.num_key_value_heads = parts.num_key_value_heads
        self.num_key_value_groups = parts.num_attention_heads // parts.num_key_value_heads
        self.head_dim = parts.head_dim
        self.gated = parts.gated
        self.norm_spans_heads = parts.norm_spans_heads
        self.scaling = parts.scaling
        self.softcap = parts.softcap
        self.sliding_window = parts.sliding_window
        self.dropout = parts.dropout
        self.is_causal = True
        self.rotary = parts.rotary
        if self.rotary is not None:  # now, rather than within a graph
            self.rotary.try_formula(self.head_dim, weight.dtype, weight.dtype)
        self.codec = plan.codec() if plan.coded else None
        reach = torch.empty(plan.kv_lora_rank, **new)
        self.latent_reach = nn.Parameter(reach, requires_grad=False) if plan.coded else None
        self.compression_disabled = False
        self._pair_frequencies: Tensor | None = None

        self.q_proj = parts.query.as_linear()
        self.kv_a_proj = skip_init(nn.Linear, weight.shape[1], plan.kv_lora_rank, **new)
        self.k_b_proj = make_key_projection(plan, self.num_key_value_heads, self.head_dim, new)
        self.v_b_proj = skip_init(nn.Linear, plan.value_rank, parts.kv_width, **new)
        self.o_proj = parts.output
        self.q_norm = parts.q_norm
        self.k_norm = parts.k_norm
        self.sinks = parts.sinks
        self.residual_dropout = parts.residual_dropout
        self.q_adapters, self.kv_a_adapters = _adapters(parts, plan, new)
        old, own = _projections(parts.source), _projections(self)
        self.replaced_names = tuple(name for name in old if name not in own)
        self.new_names = tuple(name for name in own if name not in old)
        self.source_attention = parts.source if keep_source else None
        # Keeps the loader of transformers from initialising this as the family's own module; its
        # children are seen one by one.
        self._is_hf_initialized = True
        self.train(parts.source.training)

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those that the source does not have."""
        for module in (self.kv_a_proj, self.k_b_proj, self.v_b_proj, self.kv_a_adapters):
            if module is not None:
                yield from module.parameters()
        if self.latent_reach is not None:
            yield self.latent_reach

    def freeze_as(self, parts: AttentionParts) -> None:
        """Let new projections train where what they stand for does."""
        key, value = (p.module.weight.requires_grad for p in (parts.key, parts.value))
        self.kv_a_proj.requires_grad_(key or value)
        self.k_b_proj.requires_grad_(key)
        self.v_b_proj.requires_grad_(value)

    def forward(
        self,
        hidden_states: Tensor,
        *args,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        layer_idx: int | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over the cache and the T new tokens.

        Args:
            hidden_states: (B, T, E), after the layer's norm.
            position_embeddings: cos and sin of the new tokens, (B, T, rotary dim) each.
            attention_mask: as the configured attention function takes it.
            layer_idx: cache layer, for modules that serve several.
            kwargs: the cache of latents, updated in place, under any name of `CACHE_ARGUMENTS`; and
                what the attention function takes.

        Returns:
            Output (B, T, E), and probabilities (B, H, T, S) where they were formed, else None.
        """
        cache = take_cache(kwargs)
        if self.compression_disabled:
            assert self.source_attention is not None
            known = inspect.signature(self.source_attention.forward).parameters
            named = {
                "position_embeddings": position_embeddings,
                "attention_mask": attention_mask,
                cache_argument(self.source_attention.forward): cache,
                "layer_idx": layer_idx,
            }
            given = {n: value for n, value in named.items() if value is not None or n in known}
            return self.source_attention(hidden_states, *args, **given, **kwargs)
        if args:
            raise TypeError("LatentAttention takes its arguments by name, except hidden_states")
        layer_idx = self.layer_idx if layer_idx is None else layer_idx
        assert layer_idx is not None, "a shared module is called with its layer_idx"
        query, gate = self.project_query(hidden_states, layer_idx)
        latent = self.kv_a_proj(hidden_states)
        if self.kv_a_adapters is not None:
            latent = latent + self.kv_a_adapters[str(layer_idx)](hidden_states)

        step = row_step(self, cache, layer_idx, hidden_states, attention_mask)
        if step is not None:
            copies = None
            if self.plan.keeps_exact:
                copies = self._exact_tokens(cache, layer_idx, step.num_slots - query.shape[2])
            output = attend_in_pool(self, query, latent, step, position_embeddings, copies)
            weights = None
        else:
            output, weights = self._attend(
                query, latent, position_embeddings, attention_mask, cache, layer_idx, kwargs
            )
        if gate is not None:
            output = output * torch.sigmoid(gate)
        output = self.o_proj(output)
        if self.residual_dropout is not None:
            output = self.residual_dropout(output)
        return output, weights

    def _attend(
        self,
        query: Tensor,
        latent: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None,
        attention_mask,
        cache,
        layer_idx: int,
        kwargs: dict,
    ) -> tuple[Tensor, Tensor | None]:
        """Heads' outputs (B, T, H*D) of queries (B, H, T, D) over what the cache gives out with the
        new latents (B, T, R), and probabilities."""
        first_query_slot: int | Tensor = 0
        first_key_slot: int | Tensor = 0
        num_keys = query.shape[2]
        if cache is not None and layer_idx < len(
            cache.layers
        ):  # a bare cache makes them as they come
            layer = cache.layers[layer_idx]
            _refuse_values(layer, layer_idx)
            num_keys, first_key_slot = layer.get_mask_sizes(query.shape[2])
            first_query_slot = layer.get_seq_length() + 0  # a copy: update() counts in place
        query_angles, key_angles = self._angles(
            query, position_embeddings, cache is None, first_query_slot, first_key_slot, num_keys
        )
        if query_angles is not None:
            assert self.rotary is not None
            query = self.rotary.rotate(query, *query_angles)
            if self.plan.frequencies is not None:
                latent = turn_channels(latent, self.frequencies(latent.device), *query_angles)

        # What is cached: the latent, or its row of bytes, as one head's key.
        stored = latent
        if self.codec is not None:
            stored = encode_rows(self.codec, latent, self.latent_reach)
        if cache is not None:
            stored = cache.update(stored[:, None], stored[:, None, :, :0], layer_idx)[0][:, 0]
            if attention_mask is None and isinstance(cache.layers[layer_idx], StaticLayer):
                attention_mask = without_empty_slots(
                    self, query, stored.shape[1], first_query_slot, first_key_slot
                )
        new, exact = latent, None
        latent = stored
        if self.codec is not None:
            latent = decode_rows(self.codec, stored, query.dtype)
            first_new = first_query_slot - first_key_slot
            latent = newest_straight_through(new, latent, first_new, dim=1)

        # Training reads every token as coded, also where it runs a pass again for its gradients.
        learns = self.training and (cache is None or torch.is_grad_enabled())
        if self.plan.keeps_exact and not (learns and cache is None):
            unlike = unlike_matrices(self, query)
            if unlike is not None:
                raise NotSupportedError(
                    f"{unlike} of layer {layer_idx} is not one linear map for all tokens, which "
                    "exact_sinks and exact_window read with; merge the adapter, remove the hook, "
                    "or convert without exact tokens"
                )
            copies = self._exact_tokens(cache, layer_idx, first_query_slot)
            first = first_visible_slots(attention_mask, new.shape[0], latent.shape[1], new.device)
            exact = copies.update(new, first + first_key_slot)
        if exact is not None and not learns:
            output, weights = read_with_exact(
                self,
                query,
                latent,
                exact,
                first_key_slot + latent.shape[1] - query.shape[2],
                first_key_slot,
                attention_mask,
                key_angles,
            )
        elif reads_directly(self, query, attention_mask):
            output, weights = read_latents(self, query, latent, attention_mask, key_angles)
        else:
            output, weights = read_expanded(self, query, latent, attention_mask, key_angles, kwargs)
        return output, weights

    def _exact_tokens(self, cache, layer_idx: int, first_query_slot: int | Tensor) -> ExactTokens:
        """Where the exact copies of this layer are kept.

        Raises:
            NotSupportedError: for caches that cannot keep them.
        """
        if cache is None:
            return ExactTokens(self.plan.exact_sinks, self.plan.exact_window)
        if not hasattr(cache, "exact_tokens"):
            raise NotSupportedError(
                f"a {type(cache).__name__} cannot keep exact_sinks and exact_window; use "
                "make_cache(model), which is also what generate() makes by default"
            )
        copies = cache.exact_tokens(layer_idx, self.plan.exact_sinks, self.plan.exact_window)
        assert copies.num_tokens == first_query_slot, "rows and copies are of the same tokens"
        return copies

    def frequencies(self, device: torch.device) -> Tensor:
        """Rotary frequency of each pair of key channels, (Rk / 2,), kept on the device."""
        kept = self._pair_frequencies
        if kept is None or kept.device != device:
            with lasting_tensors():
                kept = torch.tensor(self.plan.frequencies, device=device)
            self._pair_frequencies = kept
        return kept

    def _angles(
        self,
        query: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None,
        alone: bool,
        first_query_slot: int | Tensor,
        first_key_slot: int | Tensor,
        num_keys: int,
    ) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:
        """Angles of the new queries, and of the keys that are rotated when they are read.

        Without history the model's own positions serve, unless keys are stored rotated, which later
        queries must find rotated by their slot.
        """
        if self.rotary is None or position_embeddings is None:
            return None, None
        stores_rotated = self.plan.read_mode == "rotate"
        if alone or (num_keys == query.shape[2] and not stores_rotated):
            angles = position_embeddings, position_embeddings
        else:
            angles = self.rotary.window_angles(first_query_slot, first_key_slot, num_keys, query)
        return angles[0], None if stores_rotated else angles[1]

    def project_query(self, x: Tensor, layer_idx: int | None) -> tuple[Tensor, Tensor | None]:
        """Queries before rotation (B, H, T, D), and the gate (B, T, H*D) or None."""
        return project_query(self, x, self.q_adapters and self.q_adapters[str(layer_idx)])

    def keys(self, latent: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        """Keys as the scores see them, (B, J, S, D), of latents (B, S, R)."""
        k = self.k_b_proj(latent[..., : self.plan.key_rank])
        k = _normed_heads(k, self.k_norm, self.head_dim, self.norm_spans_heads)
        k = k.transpose(1, 2)
        if angles is not None:
            assert self.rotary is not None
            k = self.rotary.rotate(k, *angles)
        return k

    def keeps_pairs(self, query: Tensor, angles: tuple[Tensor, Tensor]) -> bool:
        """Whether keys may be rebuilt by `keys_in_pairs`."""
        if self.k_norm is not None or self.rotary is None or torch.is_grad_enabled():
            return False  # rotated in place, with weights that carry no gradient
        if not is_plain(self.k_b_proj) or torch.is_autocast_enabled(query.device.type):
            return False  # keys would not be float32
        return self.rotary.turns_halves(query, angles[0])

    def keys_in_pairs(self, latent: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`keys` as (B, S, J, D) with channels in pairs, so that they are rotated where they are;
        half the memory traffic of rotating copies, which is what decoding on a CPU waits for."""
        weight, bias = key_map(self, latent)
        # A copy of the rows, made anew each time: they may be written to behind anybody's back.
        weight = weight.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        shares = self.plan.key_shares(len(weight)) if self.plan.method == "per_head" else None
        channels = latent[..., : self.plan.key_rank]
        k = linear_in_order(channels, weight, in_pairs(bias), shares)
        assert self.rotary is not None
        turn_pairs_(k, self.rotary.turns(cos, sin))
        return k

    def values(self, latent: Tensor) -> Tensor:
        """Values (B, J, S, D) of latents (B, S, R)."""
        v = self.v_b_proj(self.value_channels(latent))
        return v.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def value_channels(self, latent: Tensor) -> Tensor:
        """The channels (B, S, Rv) that values are made of."""
        return latent[..., self.plan.kv_lora_rank - self.plan.value_rank :]


def _refuse_values(layer: Any, layer_idx: int) -> None:
    """Refuse a cache layer that holds values, which latents have none of."""
    values = vars(layer).get("values")  # pooled layers would read their history to answer
    if isinstance(values, Tensor) and values.shape[-1]:
        raise NotSupportedError(
            f"layer {layer_idx} of the cache holds keys and values, as prefix tuning or a source "
            "model writes them, and this model reads latents; give it a cache that it filled "
            "itself, and tune prompts (PromptTuningConfig) or adapters instead of prefixes"
        )


def _projections(module: nn.Module) -> list[str]:
    """Names of the children with a weight that is a matrix."""
    weights = {name: getattr(child, "weight", None) for name, child in module.named_children()}
    return [name for name, weight in weights.items() if weight is not None and weight.ndim > 1]


def project_query(attention, x: Tensor, adapter: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Queries before rotation (B, H, T, D), and the gate (B, T, H*D) or None.

    Args:
        attention: anything with `q_proj`, `q_norm`, `gated`, `head_dim` and `norm_spans_heads`.
        x: (B, T, E).
        adapter: low-rank addition to the projection, or None.
    """
    q = attention.q_proj(x)
    if adapter is not None:
        q = q + adapter(x)
    gate = None
    if attention.gated:
        q, gate = q.unflatten(-1, (-1, 2 * attention.head_dim)).chunk(2, dim=-1)
        q, gate = q.flatten(-2), gate.flatten(-2)
    q = _normed_heads(q, attention.q_norm, attention.head_dim, attention.norm_spans_heads)
    return q.transpose(1, 2), gate


def _normed_heads(x: Tensor, norm: nn.Module | None, head_dim: int, spans_heads: bool) -> Tensor:
    """(B, T, heads * D) -> (B, T, heads, D), normalised before or after the split."""
    if norm is not None and spans_heads:
        x = norm(x)
    x = x.unflatten(-1, (-1, head_dim))
    return norm(x) if norm is not None and not spans_heads else x


def _adapters(
    parts: AttentionParts, plan: LatentPlan, new: dict
) -> tuple[nn.ModuleDict | None, nn.ModuleDict | None]:
    """Low-rank additions of shared modules: the queries' own, and those of K and V seen through
    the encoder, (E -> 2 * adapter rank -> R)."""
    if not parts.adapters:
        return None, None
    query, latent = nn.ModuleDict(), nn.ModuleDict()
    for layer_idx, (q, k, v) in parts.adapters.items():
        query[str(layer_idx)] = q
        rank = k[0].out_features + v[0].out_features
        latent[str(layer_idx)] = nn.Sequential(
            skip_init(nn.Linear, k[0].in_features, rank, bias=False, **new),
            skip_init(nn.Linear, rank, plan.kv_lora_rank, bias=False, **new),
        )
    return query, latent
