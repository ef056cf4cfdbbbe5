"""The noun of attention over latents: what a layer computes with, and each formula once.

Of a latent c per token, keys are k = rotate(norm(U_k c + b_k)) and values v = U_v c + b_v; where
keys are rotated by their place in a block of slots before they are stored, k = rotate(back(U_k c) +
b_k); where a rotary key is apart, see `rotary_key`. Neither has to be formed: where keys are not
normalised and not rotated,

    q . k = (U_k^T q) . c + q . b_k                 absorbed queries
    sum p v = U_v (sum p c) + (sum p) b_v           mixed latents

and the same holds for queries that are turned back to a block (`rotated_keys`).

Readers are functions of a head, queries and a context: `dense_read` and `exact_read` of tensors,
`pool_read` and `prefill` of bytes in the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...codecs import RowCodec
from ...codecs.straight_through import newest_straight_through, straight_through
from ...codecs.traced_rows import decode_rows, encode_rows
from ...kernels.backend import Implementation
from ...lasting import lasting_tensors
from ...pool.memory import ExactRows
from ..exact_tokens import ExactView
from ..plan import LatentPlan
from .expansion import Expansion
from .maps import HeadMap
from .rotation import Angles
from .row_coding import coded_rows
from .slot_rotary import SlotRotary
from .split_heads import split_heads

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentHead:
    """All heads of one attention layer over latents, as readers see them.

    Modules and parameters are those of the layer, so that weights may change at any time; the
    layer makes another head when others stand in their places.

    Attributes:
        plan: of the layer's latents.
        num_attention_heads, num_key_value_heads, head_dim: H, J and D; D is the width of queries
            and keys, and that of values is the head dim of `value_up`.
        scale, softcap: products s of queries and keys give scores scale * s, and then
            softcap * tanh(score / softcap); no softcap if None.
        window: a query sees so many slots, its own included; None for all before it.
        in_chunks: of these, only those since the last position that is a multiple of it.
        biased: masks of queries hold a bias of their scores (`relative_bias`).
        sinks: (H,) logits that take part in the softmax without a value; None for none.
        key_up, value_up: from key and value channels to keys and values.
        expansion: where what is cached are latents of the source itself, and so are latents made of
            it, from these to keys and values of all heads; None elsewhere. Then J is 1, and queries
            have Dn channels behind the D that meet keys.
        encoder, mean: where keys are stored rotated, from [k; v] about their mean to channels, and
            the mean, (2*J*D,); None elsewhere.
        key_norm, norm_spans_heads: norm of keys, see `split_heads`; before their rotation, or after
            it if `norms_follow_rotation`.
        query_norm: norm of queries after their rotation; None for one before it, or none.
        rotary: rotation of queries and keys by their slot; None for none.
        codec, costs: how latents become rows of bytes, and what errors in their channels cost,
            relative to each other, (R,); None where latents are stored as they are.
        exact_codec: how keys and values become exact rows; None where no token stays exact.
    """

    plan: LatentPlan
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    scale: float
    softcap: float | None = None
    window: int | None = None
    in_chunks: bool = False
    biased: bool = False
    sinks: Tensor | None = None
    key_up: HeadMap
    value_up: HeadMap
    expansion: Expansion | None = None
    encoder: nn.Module | None = None
    mean: Tensor | None = None
    key_norm: nn.Module | None = None
    query_norm: nn.Module | None = None
    norm_spans_heads: bool = False
    norms_follow_rotation: bool = False
    rotary: SlotRotary | None = None
    codec: RowCodec | None = None
    costs: Tensor | None = None
    exact_codec: RowCodec | None = None
    _notes: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def noted(self, name: Hashable, find: Callable[[], Found]) -> Found:
        """Keeps what `find` gives under a name, for what does not depend on the values of weights.
        While a graph is traced nothing is kept."""
        if torch.compiler.is_compiling():
            return find()
        if name not in self._notes:
            with lasting_tensors():
                self._notes[name] = find()
        return self._notes[name]

    @property
    def key_width(self) -> int:
        """J * D."""
        return self.num_key_value_heads * self.head_dim

    @property
    def v_head_dim(self) -> int:
        """Dv."""
        return self.value_up.head_dim

    @property
    def width(self) -> int:
        """Elements of [k; v], J * (D + Dv)."""
        return self.num_key_value_heads * (self.head_dim + self.v_head_dim)

    # How keys are met

    @property
    def absorbs(self) -> bool:
        """Whether queries are absorbed as they are."""
        return self.plan.read_mode == "absorb"

    @property
    def rebuilds_keys(self) -> bool:
        """Whether keys are rebuilt from latents and then normalised and rotated; else queries are
        absorbed."""
        return self.plan.read_mode == "reconstruct"

    @property
    def stores_rotated(self) -> bool:
        """Whether keys are rotated by their place in a block of slots before they are stored."""
        return self.plan.read_mode == "rotate"

    @property
    def decouples(self) -> bool:
        """Whether a rotary key for all heads is stored rotated by its slot, and queries absorbed
        into both it and the rest."""
        return self.plan.read_mode == "decoupled"

    def unlike_matrices(self, like: Tensor) -> str | None:
        """Name and class of a projection that is no matrix, so that nothing can be absorbed into
        it; None if there is none. For `like` see `HeadMap.matrix`."""
        own = () if self.expansion is None else (self.expansion.up,)
        for up in (self.key_up, self.value_up, *own):
            if not up.is_matrix(like):
                return f"{up.name} (a {type(up.projection).__name__})"
        return None

    # What is stored

    def latent_in_block(self, key_value: Tensor, first_slot: int | Tensor) -> Tensor:
        """Latents (B, T, R) of new [k; v] (B, T, 2*J*D) whose keys are stored rotated.

        Args:
            first_slot: of the first new token, for `SlotRotary.place_angles`.
        """
        assert self.encoder is not None and self.mean is not None
        return self.encoder(self.in_block(key_value - self.mean, first_slot))

    def in_block(self, key_value: Tensor, first_slot: int | Tensor) -> Tensor:
        """[k; v] (B, T, 2*J*D) of the slots from a first one on, with keys rotated by their places
        where they are stored so."""
        if not self.stores_rotated:
            return key_value
        width = self.key_width
        keys = self._turned(key_value[..., :width], first_slot)
        return torch.cat([keys, key_value[..., width:]], dim=-1)

    def encoded(self, latent: Tensor, by: Implementation = "torch") -> Tensor:
        """What is stored of latents (B, T, R): the latents themselves, or rows of bytes, which
        `coded_rows` makes."""
        if self.codec is None:
            return latent
        return coded_rows(self.codec, latent, self.costs, by)

    def decoded(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Latents (B, S, R) of what is stored of them."""
        if self.codec is None:
            return stored
        return decode_rows(self.codec, stored, dtype)

    def exact_channels(self, key_value: Tensor) -> Tensor:
        """What exact rows hold, (B, T, 2*J*D), of [k; v] as the projections give them: keys are
        normalised, unless that comes after their rotation."""
        if self.key_norm is None or self.norms_follow_rotation:
            return key_value
        width = self.key_width
        keys = split_heads(
            key_value[..., :width], self.head_dim, self.key_norm, self.norm_spans_heads
        )
        return torch.cat([keys.transpose(1, 2).flatten(2), key_value[..., width:]], dim=-1)

    def exact_rows(self, channels: Tensor) -> Tensor:
        """Exact rows (B, T, bytes) of `exact_channels`."""
        assert self.exact_codec is not None
        return encode_rows(self.exact_codec, channels, None)

    def exact_view(
        self, channels: Tensor, stored: ExactRows, first: Tensor, first_query: int | Tensor
    ) -> ExactView:
        """Exact keys and values that the queries of a step may read, with gradients of the new
        ones.

        Args:
            channels: of the step's tokens, from `exact_channels`.
            stored: exact rows, those of the step included.
            first: first slot of each sequence that is not padding, (B or 1,).
            first_query: slot of the step's first token.
        """
        assert self.exact_codec is not None
        tail, sinks = (
            decode_rows(self.exact_codec, rows, channels.dtype)
            for rows in (stored.recent, stored.first)
        )
        tail = newest_straight_through(channels, tail, first_query - stored.begin, dim=1)
        slots = first[:, None] + torch.arange(sinks.shape[1], device=first.device)
        end = first_query + channels.shape[1]
        sinks = torch.where((slots < end)[..., None], sinks, 0.0)
        if torch.is_grad_enabled() and sinks.shape[1]:
            at = (slots - first_query)[..., None].expand(sinks.shape)
            new = (at >= 0) & (at < channels.shape[1])
            own = channels.gather(1, at.clamp(0, channels.shape[1] - 1))
            sinks = torch.where(new, straight_through(own, sinks), sinks)
        return ExactView(
            sinks=sinks,
            first=first,
            tail=tail,
            begin=stored.begin,
            window=self.plan.exact_window,
        )

    # What is read

    def key_channels(self, latent: Tensor) -> Tensor:
        """The channels (B, S, Rk) that keys are made of."""
        plan = self.plan
        return latent if plan.key_rank == plan.kv_lora_rank else latent[..., : plan.key_rank]

    def value_channels(self, latent: Tensor) -> Tensor:
        """The channels (B, S, Rv) that values are made of."""
        first = self.plan.kv_lora_rank - self.plan.value_rank
        return latent[..., first:] if first else latent

    def keys(self, latent: Tensor, angles: Angles | None, first_slot: int) -> Tensor:
        """Keys (B, J, S, D) of latents (B, S, R) of the slots from `first_slot` on, normalised, and
        rotated by angles of their slots if such are given."""
        outputs = self.raw_keys(latent, first_slot)
        norm = None if self.norms_follow_rotation else self.key_norm
        k = split_heads(outputs, self.head_dim, norm, self.norm_spans_heads)
        return self._at_slots(k, angles, self.key_norm)

    def queries(self, query: Tensor, angles: Angles | None) -> Tensor:
        """Queries (B, H, T, D) as they meet keys, rotated by angles if such are given."""
        return self._at_slots(query, angles, self.query_norm)

    def _at_slots(self, x: Tensor, angles: Angles | None, norm: nn.Module | None) -> Tensor:
        """Heads (B, heads, T, D), rotated by angles, and then normalised where norms follow."""
        if angles is not None:
            assert self.rotary is not None
            x = self.rotary.rotate(x, *angles)
        return norm(x) if norm is not None and self.norms_follow_rotation else x

    def raw_keys(self, latent: Tensor, first_slot: int) -> Tensor:
        """Keys (B, S, J*D) of latents (B, S, R) as the source's projection gives them, times their
        multiplier."""
        keys = self.key_up(self.key_channels(latent))
        if not self.stores_rotated:
            return keys
        mean = self.key_up.offset(keys)
        return self._turned(keys - mean, first_slot, back=True) + mean

    def _turned(self, keys: Tensor, first_slot: int | Tensor, *, back: bool = False) -> Tensor:
        """Keys (B, T, J*D) rotated by the places in their blocks of the slots from a first one on,
        see `SlotRotary.place_angles`; or back."""
        assert self.rotary is not None
        cos, sin = self.rotary.place_angles(first_slot, keys.shape[1], self.plan.block_slots, keys)
        heads = keys.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        heads = self.rotary.rotate(heads, cos, -sin if back else sin)
        return heads.transpose(1, 2).flatten(2)

    def mean_in_block(self, like: Tensor) -> Tensor:
        """The keys' mean rotated by the places of a block of slots, (1, J, block, D).

        Args:
            like: a tensor of the keys' type and device.
        """
        assert self.rotary is not None
        block = self.plan.block_slots
        mean = self.key_up.offset(like).view(1, self.num_key_value_heads, 1, self.head_dim)
        angles = self.rotary.place_angles(0, block, block, like)
        return self.rotary.rotate(mean.expand(-1, -1, block, -1), *angles)

    def values(self, latent: Tensor) -> Tensor:
        """Values (B, J, S, Dv) of latents (B, S, R)."""
        v = self.value_up(self.value_channels(latent))
        return v.unflatten(-1, (-1, self.v_head_dim)).transpose(1, 2)

    def expanded(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values as many queries meet them, of those (B, J, S, D) and (B, J, S, Dv) that
        latents or exact rows hold: of all heads where these are latents of the source."""
        return (keys, values) if self.expansion is None else self.expansion.expanded(keys, values)

    def asking(self, query: Tensor) -> Tensor:
        """Queries (B, H, T, D), as they meet what latents or exact rows hold: where values are keys
        as well, (B, H, T, D + Dv) of (B, H, T, D + Dn)."""
        if self.expansion is None:
            return query
        rotary, still = query.tensor_split((self.head_dim,), dim=-1)
        return torch.cat([rotary, self.expansion.absorbed(still)], dim=-1)

    def finished(self, mixed: Tensor) -> Tensor:
        """Heads' outputs (B, T, H*Dv) of values mixed with weights that add up to one; of all heads
        where values are latents of the source."""
        return mixed if self.expansion is None else self.expansion.outputs(mixed)

    def absorbed(self, query: Tensor, *, offset: bool = True) -> tuple[Tensor, Tensor | None]:
        """Queries (B, H, T, D) as key channels see them, (B, H * T, Rk), or (B, H * T, Rk / J)
        where heads have channels of their own; and what the keys' bias adds to all products of a
        query, (B, H * T); None unless asked for."""
        B, H, T, _ = query.shape
        grouped = self.grouped(query)
        weight, bias = self.key_up.matrix(query)
        absorbed = torch.matmul(grouped, weight).view(B, H * T, -1)
        if not offset:
            return absorbed, None
        mean = bias.view(self.num_key_value_heads, self.head_dim, 1)
        return absorbed, torch.matmul(grouped, mean).view(B, H * T)

    def exact_keys_values(self, channels: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor]:
        """Keys, rotated by angles of their slots if such are given, and values, (B, J, n, D) and
        (B, J, n, Dv), of exact rows' channels (B, n, J*(D + Dv))."""
        keys, values = (
            half.unflatten(-1, (self.num_key_value_heads, -1)).transpose(1, 2)
            for half in channels.tensor_split((self.key_width,), dim=-1)
        )
        return self._at_slots(keys, angles, self.key_norm), values

    def exact_products(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Products (B, H, T, n) of queries from `asking` with exact keys, and with exact values
        where these are keys as well."""
        if self.expansion is None:
            return self.products(query, keys)
        return self.products(query, torch.cat([keys, values], dim=-1))

    def products(self, query: Tensor, keys: Tensor) -> Tensor:
        """Products (B, H, T, S) of queries (B, H, T, D) and keys (B, J, S, D)."""
        products = torch.matmul(self.grouped(query), keys.transpose(2, 3))
        return products.view(*query.shape[:3], -1)

    def grouped(self, x: Tensor) -> Tensor:
        """(B, H, T, n) or (B, H * T, n) as (B, J, G * T, n): what meets the keys of one head, side
        by side."""
        rows = x.shape[1] if x.ndim == 3 else x.shape[1] * x.shape[2]
        return x.reshape(x.shape[0], self.num_key_value_heads, rows // self.num_key_value_heads, -1)

    def scores(self, products: Tensor) -> Tensor:
        """Scores of the products of queries and keys, in any shape."""
        scores = products * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        return scores

    def averages(self, probabilities: Tensor, values: Tensor) -> Tensor:
        """Heads' outputs (B, T, H*D) of probabilities (B, H, T, n) and values (B, J, n, D)."""
        heads = torch.matmul(self.grouped(probabilities), values)
        return joined(heads, self.num_attention_heads)

    def outputs(self, mixed: Tensor, total: Tensor | None = None) -> Tensor:
        """Heads' outputs (B, T, H*D) of mixed value channels (B, H * T, Rv).

        Args:
            total: sums of the probabilities that they were mixed with, (B, H * T); None if they add
                up to one.
        """
        weight, bias = self.value_up.matrix(mixed)
        heads = torch.matmul(self.grouped(mixed), weight.transpose(1, 2))
        mean = bias.view(self.num_key_value_heads, 1, self.v_head_dim)
        if total is not None:
            mean = self.grouped(total[..., None]).to(heads.dtype) * mean
        return joined(heads + mean, self.num_attention_heads)


def joined(heads: Tensor, num_heads: int) -> Tensor:
    """Heads' outputs (B, J, G * T, D) or (B, H, T, D) as (B, T, H*D)."""
    B, first, second, D = heads.shape
    if first * second == num_heads:  # one token
        return heads.view(B, 1, num_heads * D)
    return heads.view(B, num_heads, -1, D).transpose(1, 2).reshape(B, -1, num_heads * D)
