"""The parts of a source attention module, under one set of names whatever its family calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ...linear_map import is_plain, weight_and_bias
from .slot_rotary import SlotRotary

QueryScale = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Projection:
    """Some rows of a linear layer: `module(x)[..., rows]`.

    Attributes:
        name: attribute of the attention module that holds the layer.
        module: nn.Linear, a Conv1D, or what stands in the place of one (`linear_map`).
        rows: output features that belong to this projection; None for all of them.
    """

    name: str
    module: nn.Module
    rows: Tensor | None = None
    _found: tuple[Tensor, Tensor | None] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # What is not plain takes a pass over all its channels; what is plain may change meanwhile.
        found = None if is_plain(self.module) else weight_and_bias(self.module)
        object.__setattr__(self, "_found", found)

    def _linear(self) -> tuple[Tensor, Tensor | None]:
        return weight_and_bias(self.module) if self._found is None else self._found

    def weight(self) -> Tensor:
        """The rows' weight, (out, E)."""
        weight = self._linear()[0]
        return weight if self.rows is None else weight[self.rows.to(weight.device)]

    def bias(self) -> Tensor | None:
        bias = self._linear()[1]
        return bias if bias is None or self.rows is None else bias[self.rows.to(bias.device)]

    def as_linear(self) -> nn.Module:
        """The module itself if it is this projection alone, otherwise a copy of the rows."""
        if self.rows is None and isinstance(self.module, nn.Linear):
            return self.module
        weight, bias = self.weight(), self.bias()
        linear = skip_init(
            nn.Linear,
            weight.shape[1],
            weight.shape[0],
            bias=bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        return linear


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderParts:
    """What an attention module has of its own that reads what another one stores, taken apart.

    Attributes:
        source: the module.
        query, output, q_norm, dropout, residual_dropout: as of `AttentionParts`.
    """

    source: nn.Module
    query: Projection
    output: nn.Module
    q_norm: nn.Module | None = None
    dropout: float = 0.0
    residual_dropout: nn.Module | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionParts:
    """One source attention module, taken apart.

    Attributes:
        sources: by cache layer, the modules with these weights. More than one where layers share
            them; the parts are those of the first.
        model_config: of the model, for modules that hold none.
        head_dim: D, of queries and keys.
        v_head_dim: Dv, of values; None where they are as wide.
        query, key, value: projections of the attention's input, (H*D, E), (J*D, E), (J*Dv, E);
            `query` has 2*H*D rows if `gated`.
        output: projection of the heads' outputs back to the hidden size.
        output_norm: norm of all heads' outputs before it; None for none.
        gated: the query projection also gives a gate per head, laid out [query | gate].
        gate: projection of a gate of the heads' outputs, (H*D, E), or (H, E) for one per head; None
            for none.
        query_scale: factors (B, 1, T, 1) of queries by their positions (B, T); None for none.
        scales_by_slot: by their slots in the cache instead, padding included.
        q_norm, k_norm: norms of queries and keys; over one head's width, or over all heads if
            `norm_spans_heads`.
        norms_follow_rotation: they come after the rotation instead of before it.
        key_multiplier: constant that keys are multiplied with after their projection.
        scaling: factor of the scores.
        softcap: scores s become softcap * tanh(s / softcap); None for no cap.
        sinks: (H,) logits that take part in the softmax without a value; None for none.
        sliding_window: slots that a query sees, its own included; None for all.
        in_chunks: of these, only those since the last multiple of it.
        narrows_mask: masks say nothing of it, and the cache keeps all slots.
        rotary: rotation by slot; None for layers without RoPE.
        adapters: per layer, low-rank additions to (query, key, value) of a shared module.
        crosses: keys and values are made of what an encoder puts out, and queries of the
            attention's input.
        readers: by decoder layer, the modules without keys and values of their own that read those
            of this one; as many heads of the same width, and the same scores.
    """

    sources: Mapping[int, nn.Module]
    model_config: Any = None
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    v_head_dim: int | None = None
    query: Projection
    key: Projection
    value: Projection
    output: nn.Module
    output_norm: nn.Module | None = None
    gated: bool = False
    gate: nn.Module | None = None
    query_scale: QueryScale | None = None
    scales_by_slot: bool = False
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    norm_spans_heads: bool = False
    norms_follow_rotation: bool = False
    key_multiplier: float = 1.0
    scaling: float
    softcap: float | None = None
    sinks: nn.Parameter | None = None
    crosses: bool = False
    sliding_window: int | None = None
    in_chunks: bool = False
    narrows_mask: bool = False
    dropout: float = 0.0
    residual_dropout: nn.Module | None = None
    rotary: SlotRotary | None = None
    adapters: Mapping[int, tuple[nn.Sequential, nn.Sequential, nn.Sequential]] = field(
        default_factory=dict
    )
    readers: Mapping[int, ReaderParts] = field(default_factory=dict)

    @property
    def layer_ids(self) -> tuple[int, ...]:
        return tuple(self.sources)

    @property
    def source(self) -> nn.Module:
        return self.sources[self.layer_ids[0]]

    @property
    def config(self) -> Any:
        """That of the source module, which says how it attends."""
        return getattr(self.source, "config", self.model_config)

    @property
    def key_width(self) -> int:
        """J * D."""
        return self.num_key_value_heads * self.head_dim

    @property
    def value_width(self) -> int:
        """J * Dv."""
        return self.num_key_value_heads * (self.v_head_dim or self.head_dim)

    @property
    def width(self) -> int:
        """Elements of y = [k; v], of which a latent is made."""
        return self.key_width + self.value_width

    @property
    def read_mode(self) -> str:
        """`absorb` where keys reach the score unchanged, `reconstruct` where they are rotated or
        normalised on the way."""
        return "absorb" if self.rotary is None and self.k_norm is None else "reconstruct"

    @property
    def is_linear(self) -> bool:
        """Whether y = [k; v], as it is cached, is a linear function of the input but for its
        rotation and a norm of keys that is left for whoever reads them."""
        return True

    @property
    def observed(self) -> tuple[tuple[str, Tensor | None], tuple[str, Tensor | None]]:
        """Where keys and values come out in the source: attribute of a module that gives them, and
        rows of what it gives, or None for all of it."""
        return (self.key.name, self.key.rows), (self.value.name, self.value.rows)

    def white_weight(self) -> Tensor:
        """What [k; v] are of inputs about zero, as far as they are linear, (J*(D + Dv), E)."""
        return torch.cat([self.key.weight(), self.value.weight()])

    def white_mean(self) -> Tensor:
        """[k; v] of an input of zeros, (J*(D + Dv),), float64."""
        found = torch.zeros(self.width, dtype=torch.float64)
        halves = found.tensor_split((self.key_width,))
        for half, projection in zip(halves, (self.key, self.value), strict=True):
            bias = projection.bias()
            if bias is not None:
                half.copy_(bias.detach())
        return found

    def key_value(self, x: Tensor, layer_idx: int) -> Tensor:
        """[k; v] of inputs x (..., E) as the projections give them, (..., J*(D + Dv))."""
        outputs = []
        for position, projection in ((1, self.key), (2, self.value)):
            y = nn.functional.linear(x, projection.weight(), projection.bias())
            if self.adapters:
                y = y + self.adapters[layer_idx][position](x)
            outputs.append(y)
        return torch.cat(outputs, dim=-1)
