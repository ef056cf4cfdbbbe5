"""Where each model family keeps its weights, and what it caches. The only place with family names.

spec = model_spec(config)              what each layer caches, from the config alone
parts = read_attention(model, spec)    the attention modules taken apart, one entry per weights
replace_attention(model, spec, ...)    puts latent modules in their place
"""

from .attention import (
    attention_at,
    check_shared_weights,
    read_attention,
    read_cross_attention,
    read_source_attention,
    replace_attention,
)
from .encoder_decoder import ENCODER_DECODERS, decoder_config, has_encoder, refuse_encoder
from .family import Family
from .layers import (
    family_of,
    layer_list_of,
    layers_read_by_others,
    layout_spec,
    model_spec,
    refusal,
)
from .rows import FAMILIES

__all__ = [
    "ENCODER_DECODERS",
    "FAMILIES",
    "Family",
    "attention_at",
    "check_shared_weights",
    "decoder_config",
    "family_of",
    "has_encoder",
    "layer_list_of",
    "layers_read_by_others",
    "layout_spec",
    "model_spec",
    "read_attention",
    "read_cross_attention",
    "read_source_attention",
    "refusal",
    "refuse_encoder",
    "replace_attention",
]
