"""Vision-language models whose text model is one of the table: where it lies in the whole.

What such a model remembers is what its text model does, of images as of words: the vision part
gives it vectors in the place of tokens, at positions that follow each other.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig

from .family import Family

TEXT_MODELS: dict[str, str] = {
    **dict.fromkeys(
        (
            "aria",
            "aya_vision",
            "cohere2_vision",
            "deepseek_vl",
            "exaone4_5",
            "gemma3",
            "gemma3n",
            "gemma4",
            "gemma4_unified",
            "got_ocr2",
            "hyperclovax_vision_v2",
            "internvl",
            "janus",
            "lfm2_vl",
            "lfm3_vl",
            "lighton_ocr",
            "llava",
            "llava_next",
            "llava_next_video",
            "llava_onevision",
            "mistral3",
            "ovis2",
            "qianfan_ocr",
            "video_llama_3",
            "vipllava",
        ),
        "model.language_model",
    ),
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), "model.text_model"),
}
"""By `model_type` of the whole, the path of the text model."""
MEDIA = ("image", "video", "audio")
"""What such a model may be given beside text."""


def text_config_of(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the layers that remember: that of the text model, or of the decoder, where
    there are others."""
    if config.model_type in TEXT_MODELS or config.is_encoder_decoder:
        return config.get_text_config(decoder=True)
    return config


def inner_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the text model, or of the decoder, in whatever model: `config` itself where
    transformers knows of no other."""
    text = config.get_text_config(decoder=True)
    return text if isinstance(text, PretrainedConfig) else config


def media_tokens(config: PretrainedConfig) -> frozenset[int]:
    """Token ids in whose places a whole model puts what an image, video or sound is, which the ids
    say nothing of; none for models of text."""
    names = (f"{kind}_token_{end}" for kind in MEDIA for end in ("id", "index"))
    found = (getattr(config, name, None) for name in names)
    return frozenset(one for one in found if isinstance(one, int))


def within(row: Family, config: PretrainedConfig) -> Family:
    """The row of a whole model of this config, `row` being that of its text model."""
    path = TEXT_MODELS.get(config.model_type)
    if path is None:
        return row
    return replace(
        row,
        model_type=config.model_type,
        attention=placed(row.attention, path),
        text_model=path,
    )


def placed(module: str, text_model: str | None) -> str:
    """Path in the whole of a module that a causal model of the text has behind the name of its
    base model, such as `model.`."""
    return module if text_model is None else f"{text_model}.{module.partition('.')[2]}"
