"""DeepSeek's attention (MLA) taken apart. All families that have it name its modules alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from ..latents.attention.native_parts import NativeParts
from ..latents.attention.parts import Projection
from ..latents.attention.rotation import in_halves
from ..latents.attention.slot_rotary import SlotRotary
from ..spec import AttentionSpec
from .family import Family


def native_parts(
    family: Family,
    sources: Mapping[int, nn.Module],
    config: PretrainedConfig,
    spec: AttentionSpec,
    rotary: SlotRotary | None,
) -> NativeParts:
    """The module of these layers.

    Args:
        sources: by cache layer, one.
        config: of the text model.

    Raises:
        AttributeError: a module that is not there.
    """
    (source,) = sources.values()
    module: Any = source
    latent, heads = spec.v_head_dim, spec.num_attention_heads
    assert latent is not None
    neighbours = rotary is not None and family.turns_neighbours(config)
    channels = torch.arange(latent, latent + spec.head_dim)
    down = getattr(module, "q_a_proj", None)
    query = "q_proj" if down is None else "q_b_proj"
    return NativeParts(
        sources=dict(sources),
        num_attention_heads=heads,
        num_key_value_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
        v_head_dim=latent,
        query=Projection(query, getattr(module, query)),
        key=Projection(
            "kv_a_proj_with_mqa",
            module.kv_a_proj_with_mqa,
            in_halves(channels) if neighbours else channels,
        ),
        value=Projection("kv_a_proj_with_mqa", module.kv_a_proj_with_mqa, torch.arange(latent)),
        output=getattr(module, family.output),
        gate=None if family.gate is None else getattr(module, family.gate),
        query_scale=None if family.query_scale is None else family.query_scale(source),
        scaling=float(module.scaling),
        dropout=float(module.attention_dropout),
        rotary=rotary,
        query_down=down,
        query_norm=None if down is None else module.q_a_layernorm,
        latent_norm=module.kv_a_layernorm,
        up=module.kv_b_proj,
        qk_nope_head_dim=config.qk_nope_head_dim,
        turns_neighbours=neighbours,
        query_multiplier=float(getattr(module, "mla_scale_q_lora", 1.0)),
        latent_multiplier=float(getattr(module, "mla_scale_kv_lora", 1.0)),
    )
