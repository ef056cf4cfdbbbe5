"""What every layer of a model caches, read from its config by its family's row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from transformers import PretrainedConfig
from transformers.integrations.heterogeneity.configuration_utils import (
    AmbiguousGlobalPerLayerAttributeError,
)

from ..errors import UnsupportedModelError
from ..spec import AttentionSpec, LayerSpec, ModelSpec
from .encoder_decoder import ENCODER_DECODERS, has_encoder
from .family import Family, its_own, latent_sizes
from .refusals import refusal_of
from .rows import FAMILIES
from .states import MIXERS, state_spec
from .unconverted import LAYOUTS
from .vision import inner_config, placed, text_config_of, within

ATTENTION_LAYERS = {
    "full_attention",
    "attention",
    "sliding_attention",
    "chunked_attention",
    "hybrid",
    "sliding_hybrid",
}
MIXER_LAYERS = {"linear_attention", "mamba", "conv", "hybrid", "sliding_hybrid"}
CACHELESS_LAYERS = {"moe", "mlp"}


def family_of(config: PretrainedConfig) -> Family:
    """The row of a config's family; that of its text model, as it lies in the whole.

    Raises:
        UnsupportedModelError: for native-latent, refused and unknown families.
    """
    model_type, text = config.model_type, text_config_of(config)
    if has_encoder(config) and model_type in ENCODER_DECODERS:
        return ENCODER_DECODERS[model_type]
    if text.model_type in FAMILIES:
        return within(FAMILIES[text.model_type], config)
    raise refusal_of(config)


def model_spec(config: PretrainedConfig) -> ModelSpec:
    """What every layer of the model caches, read from its config; needs no weights."""
    with _one_size_for_all(config):
        family, text = family_of(config), text_config_of(config)
        _refuse_other_attention(text)
        _refuse_options(text, family)
        spec = _spec(text, family)
        _refuse_narrow_windows(spec)
        return spec


def refusal(config: PretrainedConfig) -> str | None:
    """Why `model_spec` refuses models of this config; None for those that can be converted."""
    try:
        model_spec(config)
    except UnsupportedModelError as error:
        return str(error)
    return None


def layout_spec(config: PretrainedConfig) -> ModelSpec:
    """What every layer caches, also in models that are not converted (`refusal`) and of whose
    family, or of whose text model's, the layout is known.

    Its bytes are what one may count on; `model_spec` is what one may convert.

    Raises:
        UnsupportedModelError: for families whose layout is unknown.
    """
    try:
        return model_spec(config)
    except UnsupportedModelError:
        text = inner_config(config)
        layout = _known_layout(config, text)
        if layout is None:
            raise
        with suppress(UnsupportedModelError), _one_size_for_all(text):
            return _spec(text, replace(layout, model_type=config.model_type))
        raise


def _known_layout(config: PretrainedConfig, text: PretrainedConfig) -> Family | None:
    """The row by which a config that is not converted is counted; None if nothing is known."""
    if text.model_type in LAYOUTS:
        return LAYOUTS[text.model_type]
    rows = ENCODER_DECODERS if has_encoder(text) else FAMILIES
    row = rows.get(text.model_type)
    if text is config or row is None:
        return None
    return None if _set_options(text, row) else row


@contextmanager
def _one_size_for_all(config: PretrainedConfig) -> Iterator[None]:
    """Refuse configs whose layers differ in size, of which transformers gives no value at all."""
    try:
        yield
    except AmbiguousGlobalPerLayerAttributeError as error:
        raise UnsupportedModelError(
            f"this {config.model_type} config gives its layers sizes of their own "
            f"(per_layer_config; {str(error).partition('. ')[0]}), and only types whose row says "
            "sizes_by_layer, such as gemma4_text, are converted then"
        ) from error


def _spec(config: PretrainedConfig, family: Family) -> ModelSpec:
    layers: list[LayerSpec] = []
    attention_ids: list[int] = []
    sizes = latent_sizes if family.caches_latents else family.head_sizes
    by_layer = family.sizes_by_layer and config.is_heterogeneous
    kinds = _layer_types(config) if family.layer_types is None else family.layer_types(config)
    for i, kind in enumerate(kinds):
        attention = None
        reads = family.reads(config, i) if kind in ATTENTION_LAYERS else None
        if kind in ATTENTION_LAYERS and reads is None:
            attention_ids.append(i)
            number = len(attention_ids) - 1
            # transformers ties shared blocks together with the embeddings, or not at all.
            if getattr(config, "tie_word_embeddings", False):
                number = family.shares_with(config, number)
            owner = attention_ids[number]
            attention = AttentionSpec(
                **sizes(config.per_layer_config[i] if by_layer else config)._asdict(),
                uses_rope=family.uses_rope(config, i),
                sliding_window=(
                    family.window(config)
                    if kind in ("sliding_attention", "sliding_hybrid", "chunked_attention")
                    else None
                ),
                in_chunks=kind == "chunked_attention",
                module_name=family.attention_path(owner),
            )
        recurrent = kind in MIXER_LAYERS and config.model_type in MIXERS
        state = state_spec(config, i, attention is not None, family) if recurrent else None
        mixer = state.kind if state is not None else None
        layers.append(
            LayerSpec(layer_idx=i, attention=attention, mixer=mixer, state=state, reads=reads)
        )
    crosses = family.cross_attention is not None
    return ModelSpec(
        model_type=family.model_type,
        layers=tuple(layers),
        continues_in_pieces=family.continues_in_pieces,
        cross=_spec(config, family.of_cross_attention) if crosses else None,
    )


def layers_read_by_others(config: PretrainedConfig) -> frozenset[int]:
    """Layers of a text model of this config whose keys and values other layers read; none of a
    family without a row."""
    family = FAMILIES.get(config.model_type)
    if family is None or family.reads is its_own:
        return frozenset()
    found = (family.reads(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
    return frozenset(idx for idx in found if idx is not None)


def layer_list_of(config: PretrainedConfig) -> str:
    """Path of the model's list of decoder layers."""
    family, text = family_of(config), text_config_of(config)
    row = MIXERS.get(text.model_type)
    path = family.attention if row is None else placed(row.path, family.text_model)
    return path.partition(".{}")[0]


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


def _set_options(config: PretrainedConfig, family: Family) -> dict[str, str]:
    """Options of this config that the row does not describe, and why."""
    return {
        name: reason
        for name, reason in family.refused_options.items()
        if getattr(config, name, None)
    }


def _refuse_options(config: PretrainedConfig, family: Family) -> None:
    for name, reason in _set_options(config, family).items():
        raise UnsupportedModelError(
            f"{name}={getattr(config, name)!r} of model_type={config.model_type!r} is not "
            f"converted: {reason}; models of this type without {name} are"
        )


def _refuse_narrow_windows(spec: ModelSpec) -> None:
    """Refuse layers that remember nothing, of which transformers' cache keeps everything."""
    for layer in spec.attention_layers:
        assert layer.attention is not None
        window = layer.attention.sliding_window
        if window is not None and window < 2:
            name = "attention_chunk_size" if layer.attention.in_chunks else "sliding_window"
            raise UnsupportedModelError(
                f"{name}={window} of model_type={spec.model_type!r} lets tokens of layer "
                f"{layer.layer_idx} see themselves alone, so that there is nothing to remember; "
                f"only models with {name} of 2 or more are converted"
            )


def _refuse_other_attention(config: PretrainedConfig) -> None:
    for flag in ("use_bidirectional_attention", "add_cross_attention"):
        # Gemma 4's "vision" is of images alone, whose tokens come with a mask of their own.
        value = getattr(config, flag, None)
        if value and value != "vision":
            raise UnsupportedModelError(
                f"{flag}={value!r}: the model is no causal decoder with one cache; only causal "
                "self-attention can be converted"
            )
