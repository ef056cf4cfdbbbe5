"""Attention that caches a latent per token instead of keys and values.

Per token the module stores c = E (y - mean) of y = [k; v], R numbers, as one 1-headed "key" with an
empty "value", so every cache of transformers holds it as it is. Reading follows the plan:

    absorb       scores (U_k^T q) . c, output U_v (sum p c)            no rotation, no key norm
    reconstruct  k = rotate(norm(U_k c + mean)), scores q . k, output U_v (sum p c)

Every query reads latents, also those of its own chunk, so the result does not depend on how a
sequence is cut into chunks. Long chunks expand keys and values once and hand them to the attention
function that the model is configured with (SDPA, FlashAttention, eager, ...).
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..plan import LatentPlan
from .attention_parts import AttentionParts
from .slot_rotary import in_pairs, turn_pairs_

# Up to this many query tokens, scores over the whole context are cheaper than expanded values, and
# small enough to hold. Covers decoding and the verification step of assisted decoding.
MAX_DECODE_TOKENS = 8


class LatentAttention(nn.Module):
    """Drop-in replacement of a source attention module, built from its parts and a plan.

    Weights that do not concern the cache (queries, output, norms, sinks) are the source's own
    modules. New ones: `kv_a_proj` (E -> R) makes the latent, `k_b_proj` (Rk -> J*D) and `v_b_proj`
    (Rv -> J*D) undo it; their biases carry the means.

    Args:
        parts: the source module, taken apart.
        plan: ranks and read mode.
        keep_source: register the source module as `source_attention`, for `compression_disabled`.
    """

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
        self.codec = plan.codec() if plan.coded else None
        reach = torch.empty(plan.kv_lora_rank, **new)
        self.latent_reach = nn.Parameter(reach, requires_grad=False) if plan.coded else None
        self.compression_disabled = False

        self.q_proj = parts.query.as_linear()
        self.kv_a_proj = skip_init(nn.Linear, weight.shape[1], plan.kv_lora_rank, **new)
        self.k_b_proj = skip_init(nn.Linear, plan.key_rank, parts.kv_width, **new)
        self.v_b_proj = skip_init(nn.Linear, plan.value_rank, parts.kv_width, **new)
        self.o_proj = parts.output
        self.q_norm = parts.q_norm
        self.k_norm = parts.k_norm
        self.sinks = parts.sinks
        self.residual_dropout = parts.residual_dropout
        self.q_adapters, self.kv_a_adapters = _adapters(parts, plan, new)
        self.source_attention = parts.source if keep_source else None
        # Keeps the loader of transformers from initialising this as the family's own module; its
        # children are seen one by one.
        self._is_hf_initialized = True
        self.train(parts.source.training)

    def forward(
        self,
        hidden_states: Tensor,
        *args,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values=None,
        layer_past=None,
        layer_idx: int | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over the cache and the T new tokens.

        Args:
            hidden_states: (B, T, E), after the layer's norm.
            position_embeddings: cos and sin of the new tokens, (B, T, rotary dim) each.
            attention_mask: as the configured attention function takes it.
            past_key_values: cache of latents; updated in place.
            layer_past: the same under the name that GPT-NeoX uses.
            layer_idx: cache layer, for modules that serve several.

        Returns:
            Output (B, T, E), and probabilities (B, H, T, S) where they were formed, else None.
        """
        if self.compression_disabled:
            named = {
                "position_embeddings": position_embeddings,
                "attention_mask": attention_mask,
                "past_key_values": past_key_values,
                "layer_past": layer_past,
                "layer_idx": layer_idx,
            }
            assert self.source_attention is not None
            known = inspect.signature(self.source_attention.forward).parameters
            given = {n: value for n, value in named.items() if value is not None or n in known}
            return self.source_attention(hidden_states, *args, **given, **kwargs)
        if args:
            raise TypeError("LatentAttention takes its arguments by name, except hidden_states")
        cache = past_key_values if past_key_values is not None else layer_past
        layer_idx = self.layer_idx if layer_idx is None else layer_idx
        assert layer_idx is not None, "a shared module is called with its layer_idx"
        query, gate = self.project_query(hidden_states, layer_idx)
        latent = self.kv_a_proj(hidden_states)
        if self.kv_a_adapters is not None:
            latent = latent + self.kv_a_adapters[str(layer_idx)](hidden_states)

        # What is cached: the latent, or its row of bytes, as one head's key.
        stored = latent if self.codec is None else self.codec.encode(latent, self.latent_reach)
        stored = stored[:, None]  # (B, 1, T, R or row bytes)
        first_query_slot: int | Tensor = 0
        first_key_slot: int | Tensor = 0
        if cache is not None:
            if layer_idx < len(cache.layers):  # a cache without config makes layers as they come
                layer = cache.layers[layer_idx]
                _, first_key_slot = layer.get_mask_sizes(stored.shape[2])
                first_query_slot = layer.get_seq_length() + 0  # a copy: update() counts in place
            stored, _ = cache.update(stored, stored[..., :0], layer_idx)
        stored = stored[:, 0]
        latent = stored if self.codec is None else self.codec.decode(stored, query.dtype)

        angles = None
        rotary = self.rotary
        if rotary is not None and position_embeddings is not None:
            if latent.shape[1] == query.shape[2]:
                angles = (position_embeddings, position_embeddings)
            else:
                angles = rotary.window_angles(
                    first_query_slot, first_key_slot, latent.shape[1], query
                )
            query = rotary.rotate(query, *angles[0])

        if self._reads_directly(query, attention_mask):
            output, weights = self._read_latents(query, latent, attention_mask, angles)
        else:
            output, weights = self._expand(query, latent, attention_mask, angles, kwargs)
        if gate is not None:
            output = output * torch.sigmoid(gate)
        output = self.o_proj(output)
        if self.residual_dropout is not None:
            output = self.residual_dropout(output)
        return output, weights

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

    def _keeps_pairs(self, query: Tensor, angles) -> bool:
        """Whether keys may be rebuilt by `_keys_in_pairs`."""
        if not angles or self.k_norm is not None or self.rotary is None:
            return False
        return self.rotary.turns_halves(query, angles[1][0])

    def _keys_in_pairs(self, latent: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`keys` as (B, S, J, D) with channels in pairs, so that they are rotated where they are;
        half the memory traffic of rotating copies, which is what decoding on a CPU waits for."""
        weight, bias = self.k_b_proj.weight, self.k_b_proj.bias
        by_head = in_pairs(weight.unflatten(0, (-1, self.head_dim)).transpose(1, 2))
        k = nn.functional.linear(
            latent[..., : self.plan.key_rank],
            by_head.transpose(1, 2).flatten(0, 1),
            in_pairs(bias.unflatten(0, (-1, self.head_dim))).flatten(),
        ).unflatten(-1, (-1, self.head_dim))
        assert self.rotary is not None
        turn_pairs_(k, self.rotary.turns(cos, sin))
        return k

    def values(self, latent: Tensor) -> Tensor:
        """Values (B, J, S, D) of latents (B, S, R)."""
        v = self.v_b_proj(self._value_channels(latent))
        return v.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _value_channels(self, latent: Tensor) -> Tensor:
        return latent[..., self.plan.kv_lora_rank - self.plan.value_rank :]

    def _reads_directly(self, query: Tensor, mask) -> bool:
        """Whether scores are formed against the latents here, rather than by expanding K and V."""
        plain_mask = mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
        return query.shape[2] <= MAX_DECODE_TOKENS and plain_mask and not self.training

    def _read_latents(self, query: Tensor, latent: Tensor, mask: Tensor | None, angles):
        """Few queries against many latents; values are never expanded.

        Args:
            query: rotated queries (B, H, T, D).
            latent: (B, S, R).
            mask: (B or 1, 1 or H, T, S), boolean (True is visible) or additive; None for causal.
        """
        B, H, T, D = query.shape
        J, G = self.num_key_value_heads, self.num_key_value_groups
        grouped = query.reshape(B, J, G * T, D)
        if self.plan.read_mode == "absorb":
            weight = self.k_b_proj.weight.view(J, D, -1)
            absorbed = torch.matmul(grouped, weight).reshape(B, H * T, -1)
            scores = torch.matmul(absorbed, latent[..., : self.plan.key_rank].transpose(1, 2))
            offset = torch.matmul(grouped, self.k_b_proj.bias.view(J, D, 1))
            scores = scores.view(B, J, G * T, -1) + offset
        elif self._keeps_pairs(query, angles):
            k = self._keys_in_pairs(latent, *angles[1])
            scores = torch.matmul(in_pairs(grouped), k.permute(0, 2, 3, 1))
        else:
            k = self.keys(latent, angles[1] if angles else None)
            scores = torch.matmul(grouped, k.transpose(2, 3))
        scores = scores.reshape(B, H, T, -1) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = _masked(scores, mask)
        if self.sinks is not None:
            sinks = self.sinks.to(scores.dtype).view(1, H, 1, 1).expand(B, H, T, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        if self.sinks is not None:
            probabilities = probabilities[..., :-1]
        values = self._value_channels(latent)
        mixed = torch.matmul(probabilities.reshape(B, H * T, -1), values)
        weight = self.v_b_proj.weight.view(J, D, -1).transpose(1, 2)
        heads = torch.matmul(mixed.view(B, J, G * T, -1), weight)
        # With sinks the probabilities do not add up to one, so the mean counts by their sum.
        total = probabilities.sum(-1, keepdim=True).view(B, J, G * T, 1)
        heads = heads + total * self.v_b_proj.bias.view(J, 1, D)
        output = heads.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)
        return output, probabilities

    def _expand(self, query: Tensor, latent: Tensor, mask, angles, kwargs):
        """Many queries: expand keys and values once and call the configured attention function."""
        k = self.keys(latent, angles[1] if angles else None)
        v = self.values(latent)
        implementation = self.config._attn_implementation
        if self.softcap is not None and implementation == "sdpa":
            implementation = "eager"  # SDPA has no softcap
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        extra = {"softcap": self.softcap, "s_aux": self.sinks}
        output, weights = attend(
            self,
            query,
            k,
            v,
            mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **{name: value for name, value in extra.items() if value is not None},
            **kwargs,
        )
        return output.reshape(*output.shape[:2], -1), weights


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


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a 4-d mask to scores (B, H, T, S); None means causal, the last query sees all."""
    num_new, num_keys = scores.shape[2:]
    if mask is None:
        if num_new == 1:
            return scores
        mask = torch.ones(num_new, num_keys, dtype=torch.bool, device=scores.device)
        mask = mask.tril(num_keys - num_new)
    else:
        mask = mask[..., :num_keys]
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def eager_attention(
    module: LatentAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """The attention formula with all its options, written out: (B, T, H, D) and (B, H, T, S)."""
    group = module.num_key_value_groups
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = _masked(scores, attention_mask)
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if s_aux is not None:
        probabilities = probabilities[..., :-1]
    dropped = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), probabilities


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


@cache
def latent_attention_class(source_class: Any) -> Any:
    """`LatentAttention` as a subclass of the family's attention class as well.

    transformers finds the modules whose attention weights it records by isinstance.
    """
    name = f"Latent{source_class.__name__}"
    return type(name, (LatentAttention, source_class), {"__doc__": LatentAttention.__doc__})
