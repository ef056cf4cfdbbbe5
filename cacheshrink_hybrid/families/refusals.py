"""Why models of a config without a row are not converted, in one line."""

from __future__ import annotations

from transformers import PretrainedConfig

from ..errors import UnsupportedModelError
from .encoder_decoder import ENCODER_DECODERS, has_encoder
from .rows import FAMILIES
from .unconverted import REFUSED
from .vision import TEXT_MODELS, inner_config


def refusal_of(config: PretrainedConfig) -> UnsupportedModelError:
    """The error of a config, of a text model or of a whole one, whose family has no row."""
    return UnsupportedModelError(f"model_type={config.model_type!r} {_reason(config)}")


def _reason(config: PretrainedConfig) -> str:
    model_type = config.model_type
    if model_type in REFUSED:
        return f"is not converted: {REFUSED[model_type]}"
    if has_encoder(config):
        return (
            "is not converted: of decoders that read an encoder's output only those of "
            f"{', '.join(ENCODER_DECODERS)} are; convert one of these, or a model of "
            "AutoModelForCausalLM"
        )
    if model_type in ENCODER_DECODERS:
        return (
            "is converted with its encoder (AutoModelForSeq2SeqLM or AutoModelForSpeechSeq2Seq), "
            "and is_encoder_decoder=False says that this is its decoder alone, which has no row; "
            "convert the whole model"
        )
    text = inner_config(config)
    if text is not config:
        return _reason_of_whole(model_type, text)
    if getattr(config, "kv_lora_rank", None):
        return (
            f"caches latents of its own (kv_lora_rank={config.kv_lora_rank}) and has no row in "
            "cacheshrink_hybrid/families/rows.py, such as deepseek_v3 has, so that nothing is "
            "known of its attention; use it as it is"
        )
    return (
        f"is unknown; supported are {len(FAMILIES)} types, such as llama, whose rows are in "
        "cacheshrink_hybrid/families/rows.py. The programs perplexity, recall and generate take "
        "its causal models as they are; to convert them, or to know what they cache, it needs a "
        "row there: `cacheshrink-hybrid inspect MODEL --try-row` guesses one and tries it, and the "
        "recipe 'A model family' in CONTRIBUTING.md says the rest"
    )


def _reason_of_whole(model_type: str, text: PretrainedConfig) -> str:
    """Of a model of this type with other parts around a text model of this config."""
    if text.model_type in FAMILIES:
        return (
            f"is unknown as a whole: its text model is of a supported type, {text.model_type!r}, "
            "and cacheshrink_hybrid/families/vision.py has no row that says where it lies in the "
            "whole; convert the text model alone, or add that row and its test"
        )
    if text.model_type in REFUSED:
        return (
            f"is not converted: of its text model, {text.model_type!r}, {REFUSED[text.model_type]}"
        )
    beside = "" if model_type in TEXT_MODELS else ", and one in vision.py beside it"
    return (
        f"is not converted: the type of its text model, {text.model_type!r}, is unknown and would "
        "need a row in cacheshrink_hybrid/families/rows.py, which `cacheshrink-hybrid inspect "
        f"MODEL --try-row` guesses and tries{beside}"
    )
