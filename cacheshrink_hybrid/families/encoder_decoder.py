"""Encoder-decoder models: the rows of their decoders, and where these are refused.

Such a decoder remembers twice: of its own tokens, as any other does, and of what the encoder puts
out, which cross-attention in every layer projects to keys and values once.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from transformers import PretrainedConfig

from ..errors import NotSupportedError
from .family import Family, HeadSizes, never, split, unscaled

_BART = Family(
    model_type="bart",
    attention="model.decoder.layers.{}.self_attn",
    cross_attention="model.decoder.layers.{}.encoder_attn",
    output="out_proj",
    uses_rope=never,
)
_T5 = Family(
    model_type="t5",
    attention="decoder.block.{}.layer.0.SelfAttention",
    cross_attention="decoder.block.{}.layer.1.EncDecAttention",
    projections=split("q", "k", "v"),
    scaling=unscaled,
    output="o",
    uses_rope=never,
    bias_table="relative_attention_bias",
    head_sizes=lambda config: HeadSizes(config.num_heads, config.num_heads, config.d_kv),
    layer_types=lambda config: ["full_attention"] * config.num_decoder_layers,
)
ENCODER_DECODERS: dict[str, Family] = {
    **{
        model_type: replace(_BART, model_type=model_type)
        for model_type in (
            "bart",
            "blenderbot",
            "blenderbot-small",
            "m2m_100",
            "marian",
            "mbart",
            "pegasus",
            "plbart",
            "speech_to_text",
            "whisper",
        )
    },
    **{model_type: replace(_T5, model_type=model_type) for model_type in ("mt5", "t5", "umt5")},
}
"""Every supported family, by `model_type`."""


ONE_TEXT = "convert its source with calibration_inputs, at a ratio that loses little by itself"
"""What to do instead of training such a model further."""


def has_encoder(config: PretrainedConfig) -> bool:
    """Whether models of this config read what an encoder puts out. A decoder of such a family that
    stands alone (`BartForCausalLM`) does not."""
    return bool(config.is_encoder_decoder)


def decoder_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of a model's text part, or of its decoder, with as many layers as that has."""
    text = config.get_text_config(decoder=True)
    count = getattr(text, "num_decoder_layers", None)
    if not has_encoder(config) or count in (None, text.num_hidden_layers):
        return text
    text = copy.deepcopy(text)  # T5 counts its encoder's layers under that name
    text.num_hidden_layers = count
    return text


def refuse_encoder(config: PretrainedConfig, what: str, remedy: str) -> None:
    """Raise `NotSupportedError` for an encoder-decoder model.

    Args:
        what: that takes decoders alone, as the subject of a sentence.
        remedy: what to do instead.
    """
    if has_encoder(config):
        raise NotSupportedError(
            f"{what} takes models that read one text, and a {config.model_type} decoder reads an "
            f"encoder's output as well; {remedy}"
        )
