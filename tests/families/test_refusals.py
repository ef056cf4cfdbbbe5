"""Configs that no row describes are refused from the config alone."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.families import (
    ENCODER_DECODERS,
    FAMILIES,
    layout_spec,
    model_spec,
    read_attention,
)
from cacheshrink_hybrid.families.vision import TEXT_MODELS
from tests.families.tiny_configs import tiny_model

OF_THEIR_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "heads": ("llama", {"per_layer_config": {1: {"num_key_value_heads": 4}}}),
    "head-width": ("llama", {"per_layer_config": {1: {"head_dim": 32}}}),
    "windows": ("mistral", {"sliding_window": 8, "per_layer_config": {1: {"sliding_window": 16}}}),
}


@pytest.mark.parametrize("name", OF_THEIR_OWN)
@pytest.mark.parametrize("spec", [model_spec, layout_spec])
def test_layers_with_sizes_of_their_own(name: str, spec) -> None:
    """transformers raises for such an attribute, also where a default is given."""
    model_type, values = OF_THEIR_OWN[name]
    config = AutoConfig.for_model(model_type, num_hidden_layers=2, **values)
    with pytest.raises(UnsupportedModelError, match=rf"{model_type} config .* sizes of their own"):
        spec(config)


@pytest.mark.parametrize("dropout", [0.5, nn.Dropout(0.5)], ids=["number", "module"])
@pytest.mark.parametrize("name", ["output_dropout", "proj_drop"])
def test_a_dropout_that_would_be_lost(dropout, name: str) -> None:
    """It changes nothing but training, so no comparison of logits would miss it."""
    model = copy.deepcopy(tiny_model("llama"))
    setattr(model.model.layers[1].self_attn, name, dropout)
    with pytest.raises(UnsupportedModelError, match=rf"layer 1 .*{name} is a dropout"):
        read_attention(model, model_spec(model.config))


@pytest.mark.parametrize("dropout", [0.5, nn.Dropout(0.5)], ids=["number", "module"])
def test_a_dropout_of_the_output_is_kept(dropout) -> None:
    model = copy.deepcopy(tiny_model("starcoder2"))
    model.model.layers[1].self_attn.residual_dropout = dropout
    found = [part.residual_dropout for part in read_attention(model, model_spec(model.config))]
    assert [x.p for x in found] == [0.0, 0.5, 0.0]


def test_a_dropout_of_the_output_has_several_names() -> None:
    model = tiny_model("modernbert-decoder", attention_dropout=0.3)
    parts = read_attention(model, model_spec(model.config))
    assert {(part.dropout, part.residual_dropout.p) for part in parts} == {(0.3, 0.3)}


def test_a_dropout_that_attention_has_and_does_not_apply() -> None:
    """In training a converted model would otherwise drop what its source keeps."""
    model = tiny_model("falcon", attention_dropout=0.3, hidden_dropout=0.4)
    parts = read_attention(model, model_spec(model.config))
    assert {part.dropout for part in parts} == {0.0}


@pytest.mark.parametrize(
    ("model_type", "option"),
    [
        ("olmo", {"clip_qkv": 0.5}),
        ("olmoe", {"clip_qkv": 8.0}),
        ("stablelm", {"qk_layernorm": True}),
        ("falcon", {"alibi": True}),
        ("falcon", {"new_decoder_architecture": True}),
    ],
)
def test_options_that_no_row_describes(model_type: str, option: dict[str, Any]) -> None:
    (name,) = option
    config = AutoConfig.for_model(model_type, **option)
    with pytest.raises(UnsupportedModelError, match=rf"{name}=.* of model_type='{model_type}' is"):
        model_spec(config)
    assert model_spec(AutoConfig.for_model(model_type)).attention_layers


def test_latents_of_a_family_without_a_row() -> None:
    class Unheard(PretrainedConfig):
        model_type = "unheard_of"

    message = (
        r"'unheard_of' caches latents of its own \(kv_lora_rank=8\) and has no row in .*rows.py"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        model_spec(Unheard(kv_lora_rank=8))


def test_every_type_is_accepted_or_refused_in_words() -> None:
    """From the config that transformers gives it, which for some types is not valid."""
    accepted = set()
    for model_type in (
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    ):
        if model_type not in CONFIG_MAPPING:
            continue  # of a converted model's class
        try:
            config = AutoConfig.for_model(model_type)
        except (StrictDataclassError, ValueError):
            continue
        with suppress(UnsupportedModelError):
            accepted.add(model_spec(config).model_type)
    known = {*FAMILIES, *TEXT_MODELS, *ENCODER_DECODERS}
    assert accepted == known & {*CONFIG_MAPPING}


@pytest.mark.parametrize(
    ("model_type", "option"),
    [("mistral", {"sliding_window": 1}), ("llama4_text", {"attention_chunk_size": 1})],
)
def test_windows_in_which_nothing_is_remembered(model_type: str, option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UnsupportedModelError, match=rf"{name}=1 of .*{model_type}.* 2 or more"):
        model_spec(AutoConfig.for_model(model_type, **option))
    assert model_spec(AutoConfig.for_model(model_type, **{name: value + 1})).attention_layers


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_the_decoder_alone_of_a_model_that_has_an_encoder(model_type: str) -> None:
    """As `BartForCausalLM` says of its config."""
    config = AutoConfig.for_model(model_type)
    config.is_encoder_decoder = False
    words = rf"{model_type}' is converted with its encoder .*convert the whole model"
    with pytest.raises(UnsupportedModelError, match=words):
        model_spec(config)


def test_what_is_missing_of_a_whole() -> None:
    with pytest.raises(UnsupportedModelError, match=r"its text model .* 'opt', .*vision.py has no"):
        model_spec(AutoConfig.for_model("blip-2"))
    for text, words in (
        ("bloom", "of its text model, 'bloom', its scores are biased"),
        ("ctrl", "the type of its text model, 'ctrl', is unknown"),
    ):
        with pytest.raises(UnsupportedModelError, match=f"'llava' is not converted: {words}"):
            model_spec(AutoConfig.for_model("llava", text_config={"model_type": text}))
