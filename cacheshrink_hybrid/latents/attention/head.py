"""The noun of attention over latents: what a layer computes with, and each formula once.

Of a latent c per token, keys are k = rotate(norm(U_k c + b_k)) and values v = U_v c + b_v; where
key channels are rotated before they are stored, k = U_k c + rotate(b_k). Neither has to be formed:
where keys are not normalised, and not rotated as they are read, the products are

    q . k = (U_k^T q) . c + q . b_k                 absorbed queries
    q . k = (U_k^T q) . c + q . rotate(b_k)         the same, of rotated channels (`rotated_keys`)
    sum p v = U_v (sum p c) + (sum p) b_v           mixed latents

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
from ...lasting import lasting_tensors
from ...pool.memory import ExactRows
from ..exact_tokens import ExactView
from ..plan import LatentPlan
from .maps import HeadMap
from .rotation import Angles, turn_channels, turning_pairs
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
        num_attention_heads, num_key_value_heads, head_dim: H, J and D.
        scale, softcap: products s of queries and keys give scores scale * s, and then
            softcap * tanh(score / softcap); no softcap if None.
        window: a query sees so many slots, its own included; None for all before it.
        sinks: (H,) logits that take part in the softmax without a value; None for none.
        key_up, value_up: from key and value channels to keys and values.
        key_norm, norm_spans_heads: norm of keys before their rotation, see `split_heads`.
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
    sinks: Tensor | None = None
    key_up: HeadMap
    value_up: HeadMap
    key_norm: nn.Module | None = None
    norm_spans_heads: bool = False
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
    def kv_width(self) -> int:
        """J * D."""
        return self.num_key_value_heads * self.head_dim

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
        """Whether the key channels of a latent are rotated by its slot before they are stored."""
        return self.plan.read_mode == "rotate"

    def unlike_matrices(self, like: Tensor) -> str | None:
        """Name and class of a projection that is no matrix, so that nothing can be absorbed into
        it; None if there is none. For `like` see `HeadMap.matrix`."""
        for up in (self.key_up, self.value_up):
            if not up.is_matrix(like):
                return f"{up.name} (a {type(up.projection).__name__})"
        return None

    # What is stored

    def turned(self, query: Tensor, latent: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """New queries (B, H, T, D), and latents (B, T, R) as they are stored, rotated by the angles
        of their slots."""
        assert self.rotary is not None
        return self.rotary.rotate(query, *angles), self.turned_latent(latent, angles)

    def turned_latent(self, latent: Tensor, angles: Angles) -> Tensor:
        """Latents (B, T, R) as they are stored, rotated by the angles of their slots."""
        frequencies, device = self.plan.frequencies, latent.device
        if frequencies is None:
            return latent
        pairs = self.noted(("pairs", device), lambda: turning_pairs(frequencies, device))
        return turn_channels(latent, pairs, *angles)

    def encoded(self, latent: Tensor) -> Tensor:
        """What is stored of latents (B, T, R): their rows of bytes, or the latents themselves."""
        if self.codec is None:
            return latent
        return encode_rows(self.codec, latent, self.costs)

    def decoded(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Latents (B, S, R) of what is stored of them."""
        if self.codec is None:
            return stored
        return decode_rows(self.codec, stored, dtype)

    def exact_channels(self, key_value: Tensor) -> Tensor:
        """What exact rows hold, (B, T, 2*J*D), of [k; v] as the projections give them: keys are
        normalised."""
        if self.key_norm is None:
            return key_value
        width = self.kv_width
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

    def keys(self, latent: Tensor, angles: Angles | None) -> Tensor:
        """Keys (B, J, S, D) of latents (B, S, R), normalised, and rotated by angles of their slots
        if such are given."""
        outputs = self.key_up(self.key_channels(latent))
        k = split_heads(outputs, self.head_dim, self.key_norm, self.norm_spans_heads)
        if self.stores_rotated:
            return k - self._mean(k) + self.rotated_mean(k, angles)
        if angles is not None:
            assert self.rotary is not None
            k = self.rotary.rotate(k, *angles)
        return k

    def rotated_mean(self, like: Tensor, angles: Angles | None) -> Tensor:
        """The keys' mean as it is at slots of these angles, (B or 1, J, S, D); without angles
        (1, J, 1, D).

        Args:
            like: a tensor of the keys' type and device.
        """
        mean = self._mean(like)
        if angles is None:
            return mean
        assert self.rotary is not None
        batch, num_slots, _ = angles[0].shape
        return self.rotary.rotate(mean.expand(batch, -1, num_slots, -1), *angles)

    def _mean(self, like: Tensor) -> Tensor:
        """(1, J, 1, D)."""
        return self.key_up.offset(like).view(1, self.num_key_value_heads, 1, self.head_dim)

    def values(self, latent: Tensor) -> Tensor:
        """Values (B, J, S, D) of latents (B, S, R)."""
        v = self.value_up(self.value_channels(latent))
        return v.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

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
        """Keys, rotated by angles of their slots if such are given, and values, (B, J, n, D) each,
        of exact rows' channels (B, n, 2*J*D)."""
        heads = channels.unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        keys, values = heads[0], heads[1]
        if angles is not None:
            assert self.rotary is not None
            keys = self.rotary.rotate(keys, *angles)
        return keys, values

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
        mean = bias.view(self.num_key_value_heads, 1, self.head_dim)
        if total is not None:
            mean = self.grouped(total[..., None]).to(heads.dtype) * mean
        return joined(heads + mean, self.num_attention_heads)


def joined(heads: Tensor, num_heads: int) -> Tensor:
    """Heads' outputs (B, J, G * T, D) or (B, H, T, D) as (B, T, H*D)."""
    B, first, second, D = heads.shape
    if first * second == num_heads:  # one token
        return heads.view(B, 1, num_heads * D)
    return heads.view(B, num_heads, -1, D).transpose(1, 2).reshape(B, -1, num_heads * D)
