"""Where each model family keeps its weights, and what it caches. The only place with family names.

spec = model_spec(config)              what each layer caches, from the config alone
parts = read_attention(model, spec)    the attention modules taken apart, one entry per weights
replace_attention(model, spec, ...)    puts latent modules in their place
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.heterogeneity.configuration_utils import (
    AmbiguousGlobalPerLayerAttributeError,
)

from ..errors import UnsupportedModelError
from ..latents.attention.parts import AttentionParts
from ..latents.attention.slot_rotary import SlotRotary
from ..spec import AttentionSpec, LayerSpec, ModelSpec
from .rows import FAMILIES, LAYOUTS, REFUSED, Family
from .states import MIXERS, state_spec

ATTENTION_LAYERS = {
    "full_attention",
    "attention",
    "sliding_attention",
    "hybrid",
    "sliding_hybrid",
}
MIXER_LAYERS = {"linear_attention", "mamba", "conv", "hybrid", "sliding_hybrid"}
CACHELESS_LAYERS = {"moe", "mlp"}
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}

__all__ = [
    "FAMILIES",
    "Family",
    "attention_at",
    "check_shared_weights",
    "family_of",
    "layer_list_of",
    "layout_spec",
    "model_spec",
    "read_attention",
    "read_source_attention",
    "replace_attention",
]


def family_of(config: PretrainedConfig) -> Family:
    """The row of a config's family.

    Raises:
        UnsupportedModelError: for native-latent, refused and unknown families.
    """
    model_type = config.model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type in REFUSED:
        raise UnsupportedModelError(
            f"model_type={model_type!r} is not converted: {REFUSED[model_type]}"
        )
    if getattr(config, "kv_lora_rank", None):
        raise UnsupportedModelError(
            f"model_type={model_type!r} already caches latents (kv_lora_rank="
            f"{config.kv_lora_rank}); it has no keys and values to compress, use it as it is"
        )
    raise UnsupportedModelError(
        f"model_type={model_type!r} is unknown; supported are {', '.join(sorted(FAMILIES))}. "
        "To add one, write its row in cacheshrink_hybrid/families/rows.py"
    )


def model_spec(config: PretrainedConfig) -> ModelSpec:
    """What every layer of the model caches, read from its config; needs no weights."""
    with _one_size_for_all(config):
        family = family_of(config)
        _refuse_other_attention(config)
        return _spec(config, family)


def layout_spec(config: PretrainedConfig) -> ModelSpec:
    """What every layer caches, also for families whose layout is known but that are not converted.

    Its bytes are what one may count on; `model_spec` is what one may convert.

    Raises:
        UnsupportedModelError: for families whose layout is unknown.
    """
    layout = LAYOUTS.get(config.model_type)
    with _one_size_for_all(config):
        return model_spec(config) if layout is None else _spec(config, layout)


@contextmanager
def _one_size_for_all(config: PretrainedConfig) -> Iterator[None]:
    """Refuse configs whose layers differ in size, of which transformers gives no value at all."""
    try:
        yield
    except AmbiguousGlobalPerLayerAttributeError as error:
        raise UnsupportedModelError(
            f"this {config.model_type} config gives its layers sizes of their own "
            f"(per_layer_config; {str(error).partition('. ')[0]}), and only models whose layers "
            "are alike are converted"
        ) from error


def _spec(config: PretrainedConfig, family: Family) -> ModelSpec:
    layers: list[LayerSpec] = []
    attention_ids: list[int] = []
    kinds = _layer_types(config) if family.layer_types is None else family.layer_types(config)
    for i, kind in enumerate(kinds):
        attention = None
        if kind in ATTENTION_LAYERS:
            num_heads, num_kv_heads, head_dim = family.head_sizes(config)
            attention_ids.append(i)
            number = len(attention_ids) - 1
            # transformers ties shared blocks together with the embeddings, or not at all.
            if getattr(config, "tie_word_embeddings", False):
                number = family.shares_with(config, number)
            owner = attention_ids[number]
            attention = AttentionSpec(
                num_attention_heads=num_heads,
                num_key_value_heads=num_kv_heads,
                head_dim=head_dim,
                uses_rope=family.uses_rope(config, i),
                sliding_window=(
                    family.window(config)
                    if kind in ("sliding_attention", "sliding_hybrid")
                    else None
                ),
                module_name=family.attention.format(owner),
            )
        recurrent = kind in MIXER_LAYERS and config.model_type in MIXERS
        state = state_spec(config, i, attention is not None) if recurrent else None
        mixer = state.kind if state is not None else None
        layers.append(LayerSpec(layer_idx=i, attention=attention, mixer=mixer, state=state))
    return ModelSpec(
        model_type=config.model_type,
        layers=tuple(layers),
        continues_in_pieces=family.continues_in_pieces,
    )


def layer_list_of(config: PretrainedConfig) -> str:
    """Path of the model's list of decoder layers."""
    if config.model_type in MIXERS:
        return MIXERS[config.model_type].path.partition(".{}")[0]
    return family_of(config).attention.partition(".{}")[0]


def _layer_types(config: PretrainedConfig) -> list[str]:
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        windowed = getattr(config, "sliding_window", None) is not None
        kinds = ["sliding_attention" if windowed else "full_attention"] * config.num_hidden_layers
    unknown = sorted(set(kinds) - ATTENTION_LAYERS - MIXER_LAYERS - CACHELESS_LAYERS)
    if unknown:
        raise UnsupportedModelError(
            f"layer types {', '.join(unknown)} of model_type={config.model_type!r} are unknown; "
            f"known are {', '.join(sorted(ATTENTION_LAYERS | MIXER_LAYERS | CACHELESS_LAYERS))}"
        )
    return list(kinds)


def _refuse_other_attention(config: PretrainedConfig) -> None:
    for flag in ("use_bidirectional_attention", "add_cross_attention"):
        if getattr(config, flag, False):
            raise UnsupportedModelError(
                f"{flag}=True: the model is no causal decoder with one cache; only causal "
                "self-attention can be converted"
            )


def read_attention(model: PreTrainedModel, spec: ModelSpec) -> list[AttentionParts]:
    """Take the model's attention modules apart, one entry per set of weights, in layer order.

    Raises:
        UnsupportedModelError: if a module is not built as its family's row says.
    """
    family = family_of(model.config)
    return _read(model, spec, lambda idx: _submodule(model, family.attention.format(idx)))


def read_source_attention(model: PreTrainedModel, spec: ModelSpec) -> list[AttentionParts]:
    """As `read_attention`, of the source attention that a converted model keeps beside its latent
    one (`store_original_weights=True`); modules that were not converted are left out."""
    return _read(
        model, spec, lambda idx: getattr(attention_at(model, idx), "source_attention", None)
    )


def _read(
    model: PreTrainedModel, spec: ModelSpec, source_of: Callable[[int], nn.Module | None]
) -> list[AttentionParts]:
    parts = []
    rotaries: dict[tuple, SlotRotary] = {}
    for layers in spec.shared_modules().values():
        found = {layer.layer_idx: source_of(layer.layer_idx) for layer in layers}
        sources = {idx: source for idx, source in found.items() if source is not None}
        if sources:
            assert layers[0].attention is not None
            parts.append(_take_apart(model, sources, layers[0].attention, rotaries))
    return parts


def check_shared_weights(parts: list[AttentionParts]) -> None:
    """Raise `UnsupportedModelError` if layers that should share one module's weights do not."""
    for part in parts:
        for layer_idx, source in part.sources.items():
            key = getattr(source, part.key.name)
            if key is not part.key.module and key.weight is not part.key.module.weight:
                raise UnsupportedModelError(
                    f"layers {part.layer_ids[0]} and {layer_idx} should share their attention "
                    "weights, but do not; call model.tie_weights() first"
                )


def _take_apart(
    model: PreTrainedModel,
    sources: dict[int, nn.Module],
    spec: AttentionSpec,
    rotaries: dict[tuple, SlotRotary],
) -> AttentionParts:
    """The module of these layers.

    Args:
        rotaries: of the layers before them, by what the rotary embedding is asked for.
    """
    family = family_of(model.config)
    layer_idx, source = next(iter(sources.items()))
    H, J, D = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
    try:
        query, key, value = family.projections(source, H, J, D)
        output = getattr(source, family.output)
        norms = [getattr(source, name) for name in family.norms or ()]
    except AttributeError as error:
        raise _unlike_row(family, layer_idx, str(error)) from error
    q_norm, k_norm = norms or (None, None)
    due = {"query": H * D * (2 if family.gated else 1), "key": J * D, "value": J * D}
    for name, projection in (("query", query), ("key", key), ("value", value)):
        rows = projection.weight().shape[0]
        if rows != due[name]:
            raise _unlike_row(family, layer_idx, f"{name} has {rows} rows, {due[name]} are due")
    return AttentionParts(
        sources=sources,
        num_attention_heads=H,
        num_key_value_heads=J,
        head_dim=D,
        query=query,
        key=key,
        value=value,
        output=output,
        gated=family.gated,
        q_norm=q_norm,
        k_norm=k_norm,
        norm_spans_heads=family.norm_spans_heads,
        key_multiplier=float(getattr(source, "key_multiplier", 1.0)),
        scaling=float(source.scaling),
        softcap=getattr(source, "attn_logit_softcapping", None),
        sinks=getattr(source, "sinks", None),
        sliding_window=spec.sliding_window,
        dropout=_dropout(source),
        residual_dropout=getattr(source, "resid_dropout", None),
        rotary=_rotary(model, source, layer_idx, rotaries) if spec.uses_rope else None,
        adapters=_adapters(source, sources),
    )


def _dropout(source: nn.Module) -> float:
    for name in ("attention_dropout", "dropout"):
        if hasattr(source, name):
            return float(getattr(source, name))
    module = getattr(source, "attn_dropout", None)
    return float(module.p) if module is not None else 0.0


def _rotary(
    model: PreTrainedModel,
    source: nn.Module,
    layer_idx: int,
    rotaries: dict[tuple, SlotRotary],
) -> SlotRotary:
    """The rotation of a layer, one for all layers that are rotated alike."""
    family, rotary_emb = family_of(model.config), model.base_model.rotary_emb
    extra = (model.config.layer_types[layer_idx],) if family.rope_by_layer_type else ()
    rope_type = rotary_emb.rope_type
    if extra:
        rope_type = rope_type[extra[0]]
    rotary = SlotRotary(
        rotary_emb,
        sys.modules[type(source).__module__].apply_rotary_pos_emb,
        extra=extra,
        position_axes=family.position_axes,
        depends_on_length=rope_type in LENGTH_DEPENDENT_ROPE,
    )
    return rotaries.setdefault(extra, rotary)


def _adapters(source: nn.Module, sources: dict[int, nn.Module]) -> dict:
    """Per-layer low-rank additions of a shared module (Zamba2), by cache layer."""
    if not hasattr(source, "linear_q_adapter_list"):
        return {}
    lists = [getattr(source, f"linear_{name}_adapter_list") for name in "qkv"]
    return {
        layer_idx: tuple(adapters[source.layer_dic[layer_idx]] for adapters in lists)
        for layer_idx in sources
    }


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"the model has no module {path!r}, where its family keeps its attention; convert a "
            "plain causal language model (AutoModelForCausalLM)"
        ) from error


def attention_at(model: PreTrainedModel, layer_idx: int) -> nn.Module:
    """The attention module of one cache layer, converted or not."""
    return _submodule(model, family_of(model.config).attention.format(layer_idx))


def _unlike_row(family: Family, layer_idx: int, detail: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"attention of layer {layer_idx} is not built as the row of {family.model_type!r} says: "
        f"{detail}; was the model converted or patched before?"
    )


def replace_attention(
    model: PreTrainedModel, layer_ids: tuple[int, ...], make: Callable[[], nn.Module]
) -> nn.Module:
    """Put one new module in the place of the attention of all `layer_ids`; returns it."""
    family = family_of(model.config)
    new = make()
    for layer_idx in layer_ids:
        parent, _, name = family.attention.format(layer_idx).rpartition(".")
        place = new if layer_idx == layer_ids[0] else _alias(new)
        setattr(model.get_submodule(parent), name, place)
    return new


def _alias(module: nn.Module) -> nn.Module:
    """A module with the weights and sub-modules of another, and hooks of its own, so that a hook
    that is registered at each place in the model runs once per call."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if "_hooks" in name:
            setattr(twin, name, copy.copy(value))
    return twin
