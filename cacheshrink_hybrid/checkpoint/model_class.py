"""The class of transformers that a source config is a model of."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PretrainedConfig,
)

from ..families import has_encoder
from ..families.vision import TEXT_MODELS


def auto_class_of(config: PretrainedConfig) -> Any:
    """The Auto class that loads such models: with images, with an encoder of text or speech, or of
    text alone. Some of the latter are known to transformers as text models of the first only."""
    if has_encoder(config):
        speech = type(config) in AutoModelForSpeechSeq2Seq._model_mapping
        return AutoModelForSpeechSeq2Seq if speech else AutoModelForSeq2SeqLM
    if config.model_type in TEXT_MODELS:
        return AutoModelForImageTextToText
    known = type(config) in AutoModelForCausalLM._model_mapping
    listed = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if listed and not known else AutoModelForCausalLM


def model_class_of(config: PretrainedConfig) -> Any:
    """The class of a config's models."""
    return auto_class_of(config)._model_mapping[type(config)]
