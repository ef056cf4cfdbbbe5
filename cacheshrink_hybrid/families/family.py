"""What a row of the table of model families says: the axes on which families differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig

from ..errors import UnsupportedModelError
from ..latents.attention.parts import Projection, QueryScale

Projections = Callable[[nn.Module, int, int, int], tuple[Projection, Projection, Projection]]


def split(q: str = "q_proj", k: str = "k_proj", v: str = "v_proj") -> Projections:
    """Queries, keys and values each have a layer of their own."""

    def read(attention: nn.Module, H: int, J: int, D: int):
        return tuple(Projection(name, getattr(attention, name)) for name in (q, k, v))

    return read


def split_or_shared(attention: nn.Module, H: int, J: int, D: int):
    """As `split`; keys and values come from one layer where there is none of values."""
    names = ("q_proj", "k_proj", "k_proj" if attention.v_proj is None else "v_proj")
    return tuple(Projection(name, getattr(attention, name)) for name in names)


Layer = Callable[[nn.Module, str], nn.Module]
"""A linear layer of an attention module, by its name."""


def as_it_is(attention: nn.Module, name: str) -> nn.Module:
    return getattr(attention, name)


def of_own_class(attention: nn.Module, name: str) -> nn.Module:
    """A layer of a class of its own that computes what `nn.Linear` does, as one of that, with the
    same parameters: where these are not there yet, nothing can be found out about a class."""
    module: Any = getattr(attention, name)
    sizes = module.in_features, module.out_features, module.bias is not None
    linear = nn.Linear(*sizes, device="meta", dtype=module.weight.dtype)
    linear.weight, linear.bias = module.weight, module.bias
    return linear


def fused(name: str, layer: Layer = as_it_is) -> Projections:
    """One layer gives [q | k | v]."""

    def read(attention: nn.Module, H: int, J: int, D: int):
        module = layer(attention, name)
        q, k, v = torch.arange((H + 2 * J) * D).split([H * D, J * D, J * D])
        return tuple(Projection(name, module, rows) for rows in (q, k, v))

    return read


def by_width(attention: Any) -> float:
    """The factor of scores 1 / sqrt(D)."""
    return attention.head_dim**-0.5


def unscaled(attention: Any) -> float:
    """Scores are the products of queries and keys as they are."""
    return 1.0


def in_shards(name: str, shards: int) -> Projections:
    """One layer gives [q | v | k] of one part of the heads after the other."""

    def read(attention: nn.Module, H: int, J: int, D: int):
        module = getattr(attention, name)
        q, v, k = torch.arange(3 * H * D).view(shards, 3, -1).unbind(1)
        return tuple(Projection(name, module, rows.flatten()) for rows in (q, k, v))

    return read


def interleaved(name: str, layer: Layer = as_it_is) -> Projections:
    """One layer gives, head by head, [q | k | v]; every query head has its own key/value head."""

    def read(attention: nn.Module, H: int, J: int, D: int):
        module = layer(attention, name)
        q, k, v = torch.arange(3 * H * D).view(H, 3, D).unbind(1)
        return tuple(Projection(name, module, rows.flatten()) for rows in (q, k, v))

    return read


def fused_by_sharing(name: str, layer: Layer = as_it_is) -> Projections:
    """`fused` where all query heads share one key/value head, else `interleaved`."""
    shared, apart = fused(name, layer), interleaved(name, layer)

    def read(attention: nn.Module, H: int, J: int, D: int):
        return (shared if J == 1 else apart)(attention, H, J, D)

    return read


def always(config: PretrainedConfig, layer_idx: int) -> bool:
    return True


def never(config: PretrainedConfig, layer_idx: int) -> bool:
    return False


def in_windows(config: PretrainedConfig, layer_idx: int) -> bool:
    """Layers that see everything have no positions."""
    return config.layer_types[layer_idx] == "sliding_attention"


def in_windows_if_any(config: PretrainedConfig, layer_idx: int) -> bool:
    """Layers that see everything have no positions, where others have a window."""
    return config.sliding_window is None or in_windows(config, layer_idx)


def its_own(config: PretrainedConfig, layer_idx: int) -> int | None:
    return None


def of_last_alike(config: PretrainedConfig, layer_idx: int) -> int | None:
    """The last `num_kv_shared_layers` read what the last layer of their kind before these stores.

    Raises:
        UnsupportedModelError: no layer of this kind lies before them.
    """
    kinds, count = config.layer_types, config.num_kv_shared_layers
    first, kind = config.num_hidden_layers - count, config.layer_types[layer_idx]
    if layer_idx < first:
        return None
    alike = [i for i in range(max(0, first)) if kinds[i] == kind]
    if not alike:
        raise UnsupportedModelError(
            f"num_kv_shared_layers={count} of model_type={config.model_type!r} leaves layer "
            f"{layer_idx} no {kind} layer before it whose keys and values it could read, as in an "
            "assistant, which reads those of another model; convert that one"
        )
    return alike[-1]


def _of_model(config: PretrainedConfig, layer_idx: int) -> str:
    return "rotary_emb"


def _own(config: PretrainedConfig, hybrid_layer: int) -> int:
    return hybrid_layer


class HeadSizes(NamedTuple):
    """Heads of an attention layer, as `AttentionSpec` has them."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    v_head_dim: int | None = None
    expanded_width: int | None = None


def _head_sizes(config: PretrainedConfig) -> HeadSizes:
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return HeadSizes(num_heads, num_kv_heads, head_dim)


def latent_sizes(config: PretrainedConfig) -> HeadSizes:
    """DeepSeek's attention, which caches a rotary key and a latent for all heads, as one head whose
    key and value these are."""
    heads, rotary = config.num_attention_heads, config.qk_rope_head_dim
    expanded = heads * (config.qk_nope_head_dim + rotary + config.v_head_dim)
    return HeadSizes(heads, 1, rotary, config.kv_lora_rank, expanded)


def by_rope_interleave(config: PretrainedConfig) -> bool:
    return bool(config.rope_interleave)


def _sliding_window(config: PretrainedConfig) -> int:
    return config.sliding_window


LLAMA_PROJECTIONS = split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row.

    Attributes:
        model_type: Hugging Face `model_type`.
        attends: whether such models have attention.
        text_model: path of the text model in a model with other parts; None for the base model.
        attention: path of layer i's attention module, with `{}` for i.
        cross_attention: path of layer i's attention over what an encoder puts out, whose
            projections have the same names; None in a model without an encoder.
        crosses: this row is of such attention, see `of_cross_attention`.
        projections: where queries, keys and values come from.
        scaling: attribute of the factor of scores, or that factor of an attention module.
        output: attribute of the output projection.
        output_norm: attribute of a norm of all heads' outputs before it; None if there is none.
        norms: attributes of (q_norm, k_norm); None if there are none.
        norms_if: attribute of the config that says whether there are norms; None if there are.
        norms_with_rope: only layers that rotate keys have norms.
        norms_follow_rotation: the norms come after the rotation.
        value_norm: attribute of the norm of values; None if there is none.
        norm_spans_heads: the norms run over all heads together instead of one head each.
        bias_table: attribute of a bias of scores by distance, see `BiasedParts`, which the first
            layers have at least; None for no such bias.
        idle_dropouts: attributes named as dropouts that its attention does not apply.
        uses_rope: whether layer i rotates its keys.
        rotary: path of layer i's rotary embedding in the text model.
        rotates_first: attention takes apart the first channels of a head, as many as there are
            angles, and rotates those; elsewhere the model's function does so where need be.
        neighbours: first channels of a head, of which (2i, 2i + 1) are rotated together, so that
            rows of queries and keys are put in another order; None where the model's function
            takes them as they are.
        own_angles: attention takes angles of these from its positions (`PlainRotary`).
        rotates_apart: the model's function rotates queries or keys, not both at once.
        position_axes: see `SlotRotary`.
        rope_by_layer_type: the rotary embedding takes the layer's type as third argument.
        gated: the query projection also gives an output gate.
        gate: attribute of the projection that gives an output gate; None for none.
        query_scale: factors of queries by their positions, see `AttentionParts`, of an attention
            module that has any; None for none.
        scales_by_slot: see `AttentionParts`.
        continues_in_pieces: see `ModelSpec`.
        shares_with: for the n-th attention layer, the number of the one whose weights it uses.
        reads: the layer whose keys and values layer i reads, without any of its own; None for its
            own.
        head_sizes: of an attention layer.
        sizes_by_layer: layers may differ in these; the model takes them from `per_layer_config`.
        caches_latents: it is DeepSeek's attention (`latent_sizes`), of whose projections and norms
            the fields above say nothing.
        turns_neighbours: such attention rotates channels (2i, 2i + 1) of a rotary key together.
        modules_per_layer: attention modules of one decoder layer. If there are several, `attention`
            has a second `{}`, for which of them.
        layer_types: kinds of all layers; None for those that the config lists.
        window: tokens that a layer with a sliding window, or with chunks, sees.
        hidden_window: tokens that layer i sees of those that masks show it and the cache keeps;
            None for all.
        refused_options: by attributes of the config, why models that set them are not converted.
    """

    model_type: str
    attends: bool = True
    text_model: str | None = None
    attention: str = "model.layers.{}.self_attn"
    cross_attention: str | None = None
    crosses: bool = False
    projections: Projections = LLAMA_PROJECTIONS
    scaling: str | Callable[[Any], float] = "scaling"
    output: str = "o_proj"
    output_norm: str | None = None
    norms: tuple[str, str] | None = None
    norms_if: str | None = None
    norms_with_rope: bool = False
    norms_follow_rotation: bool = False
    value_norm: str | None = None
    norm_spans_heads: bool = False
    bias_table: str | None = None
    idle_dropouts: tuple[str, ...] = ()
    uses_rope: Callable[[PretrainedConfig, int], bool] = always
    rotary: Callable[[PretrainedConfig, int], str] = _of_model
    rotates_first: bool = False
    neighbours: Callable[[PretrainedConfig], int] | None = None
    own_angles: bool = False
    rotates_apart: bool = False
    rope_by_layer_type: bool = False
    position_axes: int = 1
    gated: bool = False
    gate: str | None = None
    query_scale: Callable[[Any], QueryScale | None] | None = None
    scales_by_slot: bool = False
    continues_in_pieces: bool = True
    shares_with: Callable[[PretrainedConfig, int], int] = _own
    reads: Callable[[PretrainedConfig, int], int | None] = its_own
    head_sizes: Callable[[PretrainedConfig], HeadSizes] = _head_sizes
    sizes_by_layer: bool = False
    caches_latents: bool = False
    turns_neighbours: Callable[[PretrainedConfig], bool] = by_rope_interleave
    modules_per_layer: int = 1
    layer_types: Callable[[PretrainedConfig], list[str]] | None = None
    window: Callable[[PretrainedConfig], int] = _sliding_window
    hidden_window: Callable[[PretrainedConfig, int], int | None] = its_own
    refused_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def of_cross_attention(self) -> Family:
        """The row of the attention over what an encoder puts out, which has no positions."""
        assert self.cross_attention is not None
        return replace(
            self,
            attention=self.cross_attention,
            cross_attention=None,
            crosses=True,
            bias_table=None,
            uses_rope=never,
        )

    def attention_path(self, layer_idx: int) -> str:
        """Path of the attention module of one cache layer."""
        if self.modules_per_layer == 1:
            return self.attention.format(layer_idx)
        return self.attention.format(*divmod(layer_idx, self.modules_per_layer))
