"""Tiny configs of every supported encoder-decoder family, with what their encoders read.

Encoder and decoder differ in layers and heads, so that neither stands for the other.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from cacheshrink_hybrid.checkpoint.model_class import auto_class_of
from tests.families.tiny_configs import shaken

TEXT = dict(
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    vocab_size=96,
    max_position_embeddings=64,
    activation_function="gelu",
    dropout=0.0,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    decoder_start_token_id=1,
    forced_eos_token_id=None,
    scale_embedding=True,
    init_std=0.04,
)
SPEECH = {
    **{name: value for name, value in TEXT.items() if name != "max_position_embeddings"},
    "max_source_positions": 24,
    "max_target_positions": 64,
}
T5 = dict(
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_layers=3,
    num_decoder_layers=2,
    num_heads=4,
    initializer_factor=0.6,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    dropout_rate=0.0,
    feed_forward_proj="gated-gelu",
    vocab_size=96,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    decoder_start_token_id=1,
)
CASES: dict[str, dict[str, Any]] = {
    **{
        name: dict(model_type=name, **TEXT)
        for name in ("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart")
    },
    "pegasus": dict(model_type="pegasus", **TEXT),
    "plbart": dict(model_type="plbart", **TEXT),
    "speech_to_text": dict(
        model_type="speech_to_text",
        input_feat_per_channel=8,
        input_channels=1,
        conv_channels=16,
        **SPEECH,
    ),
    "t5": dict(model_type="t5", **T5),
    "t5-wide": dict(model_type="t5", **{**T5, "num_heads": 2, "d_kv": 24}),
    "mt5": dict(model_type="mt5", **T5),
    "umt5": dict(model_type="umt5", **T5),
    "whisper": dict(
        model_type="whisper",
        num_mel_bins=8,
        begin_suppress_tokens=None,
        suppress_tokens=None,
        **SPEECH,
    ),
}


def tiny_config(case: str, **changes: Any) -> PretrainedConfig:
    values = {**CASES[case], **changes}
    return AutoConfig.for_model(values.pop("model_type"), **values)


def tiny_model(case: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A seeded model of one case whose attention matters."""
    torch.manual_seed(seed)
    choice = {name: changes.pop(name) for name in ("attn_implementation",) if name in changes}
    config = tiny_config(case, **changes)
    model = auto_class_of(config).from_config(config, **choice).eval()
    # Sinusoids are made anew when a model is loaded.
    fixed = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if any(re.search(key, name) for key in model._keys_to_ignore_on_save or ())
        and "embed_positions" in name
    }
    model = shaken(model)
    model.load_state_dict(fixed, strict=False)
    return model


def encoder_inputs(model: PreTrainedModel, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """What an encoder reads; rows of several differ in length where the family has a mask."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    if config.model_type == "whisper":
        size = (batch, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": torch.randn(size, generator=generator)}
    if config.model_type == "speech_to_text":
        size = (batch, 40, config.input_feat_per_channel)
        given = {"input_features": torch.randn(size, generator=generator)}
    else:
        given = {"input_ids": torch.randint(3, 96, (batch, 13), generator=generator)}
    mask = torch.ones(batch, next(iter(given.values())).shape[1], dtype=torch.long)
    for row in range(1, batch):
        mask[row, -4 * row :] = 0
    return {**given, "attention_mask": mask}


def pairs(model: PreTrainedModel, count: int, length: int = 12) -> list[dict[str, Tensor]]:
    """What calibration reads, of several seeds."""
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(1000 + seed)
        labels = torch.randint(3, 96, (1, length), generator=generator)
        found.append({**encoder_inputs(model, 1, seed), "labels": labels})
    return found
