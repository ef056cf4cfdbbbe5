"""The table of model families: where each one keeps what, as one row.

A family is added by a row here and a row in `tests/families/tiny_configs.py`, or beside it in
`row_configs.py` where all its axes are those of others. Axes on which families differ are fields of
`Family`; a row names only what differs from Llama.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from ..latents.attention.parts import QueryScale
from .family import (
    Family,
    HeadSizes,
    by_width,
    fused,
    fused_by_sharing,
    in_shards,
    in_windows,
    in_windows_if_any,
    interleaved,
    never,
    of_last_alike,
    of_own_class,
    split_or_shared,
    unscaled,
)

ALIBI = "its scores are biased by distance (ALiBi), and latents are read by products alone"
QK_NORM = ("q_norm", "k_norm")
QK_LAYERNORM = ("q_layernorm", "k_layernorm")
CLAMPED = (
    "queries, keys and values are clamped, so that keys are no linear function of what is stored"
)


def _rotated_in_dense_prefix(config: PretrainedConfig, layer_idx: int) -> bool:
    """Layers with a window, and those of a dense prefix that has a pattern of its own."""
    dense = config.mlp_layer_types[layer_idx] == "dense"
    return in_windows(config, layer_idx) or (
        dense and config.prefix_dense_sliding_window_pattern == 1
    )


def _scale_of_long_texts(attention: Any) -> QueryScale:
    """1 + beta log(1 + floor(position / n)): queries grow with every n tokens of the text."""
    rope = attention.config.rope_parameters
    beta, count = rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"]

    def scale(positions: Tensor) -> Tensor:
        return (1 + beta * torch.log(1 + torch.floor(positions / count)))[:, None, :, None]

    return scale


def _scale_without_rope(attention: Any) -> QueryScale | None:
    """1 + a log(1 + floor((slot + 1) / n)), in layers that do not rotate keys."""
    if attention.use_rope or not attention.attn_temperature_tuning:
        return None
    slope, count = attention.attn_scale, attention.floor_scale

    def scale(slots: Tensor) -> Tensor:
        scales = torch.log1p(torch.floor((slots.float() + 1) / count)) * slope + 1
        return scales[:, None, :, None]

    return scale


def _rotary_dim(config: PretrainedConfig) -> int:
    return config.rotary_dim or config.hidden_size // config.num_attention_heads


def _of_local_layers(config: PretrainedConfig, layer_idx: int) -> int | None:
    return config.window_size if config.attention_layers[layer_idx] == "local" else None


def _shared_by_all(config: PretrainedConfig) -> HeadSizes:
    """One key/value head for all queries, or one for each."""
    H = config.num_attention_heads
    return HeadSizes(H, 1 if config.multi_query else H, config.hidden_size // H)


def _rotated_by_theta(config: PretrainedConfig, layer_idx: int) -> bool:
    return bool(config.layer_rope_theta[layer_idx])


def _rotary_of_theta(config: PretrainedConfig, layer_idx: int) -> str:
    """One rotary embedding for every base that some layer has, in ascending order."""
    bases = sorted({theta for theta in config.layer_rope_theta if theta})
    return f"rotary_embs.{bases.index(config.layer_rope_theta[layer_idx])}"


_GEMMA3N = Family(
    model_type="gemma3n_text",
    norms=QK_NORM,
    value_norm="v_norm",
    rope_by_layer_type=True,
    rotates_apart=True,
    reads=of_last_alike,
)
_GEMMA4 = replace(
    _GEMMA3N, model_type="gemma4_text", projections=split_or_shared, sizes_by_layer=True
)
FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        Family(
            model_type="gpt2",
            attention="transformer.h.{}.attn",
            projections=fused("c_attn"),
            output="c_proj",
            uses_rope=never,
        ),
        Family(
            model_type="gpt_neo",
            attention="transformer.h.{}.attn.attention",
            scaling=unscaled,
            output="out_proj",
            uses_rope=never,
            hidden_window=_of_local_layers,
        ),
        Family(
            model_type="gptj",
            attention="transformer.h.{}.attn",
            scaling=by_width,
            output="out_proj",
            neighbours=_rotary_dim,
            own_angles=True,
        ),
        Family(
            model_type="codegen",
            attention="transformer.h.{}.attn",
            projections=in_shards("qkv_proj", 4),
            scaling=by_width,
            output="out_proj",
            neighbours=_rotary_dim,
            own_angles=True,
        ),
        Family(
            model_type="gpt_neox",
            attention="gpt_neox.layers.{}.attention",
            projections=interleaved("query_key_value"),
            output="dense",
        ),
        Family(
            model_type="opt",
            attention="model.decoder.layers.{}.self_attn",
            output="out_proj",
            uses_rope=never,
        ),
        Family(model_type="llama"),
        Family(
            model_type="llama4_text",
            text_model="model",  # whose base model is the whole
            norms=("qk_norm", "qk_norm"),
            norms_if="use_qk_norm",
            norms_with_rope=True,
            norms_follow_rotation=True,
            uses_rope=lambda config, i: bool(config.no_rope_layers[i]),
            neighbours=lambda config: config.head_dim,
            query_scale=_scale_without_rope,
            scales_by_slot=True,
            window=lambda config: config.attention_chunk_size,
        ),
        Family(model_type="mistral"),
        Family(model_type="mixtral"),
        Family(model_type="qwen2"),
        Family(model_type="qwen3", norms=QK_NORM),
        Family(model_type="qwen3_moe", norms=QK_NORM),
        Family(model_type="gemma2"),
        Family(model_type="gemma3_text", norms=QK_NORM, rope_by_layer_type=True),
        _GEMMA3N,
        _GEMMA4,
        replace(_GEMMA4, model_type="gemma4_unified_text"),
        Family(model_type="phi3", projections=fused("qkv_proj")),
        Family(model_type="phi4_multimodal", projections=fused("qkv_proj")),
        Family(model_type="olmo2", norms=QK_NORM, norm_spans_heads=True),
        Family(model_type="smollm3", uses_rope=lambda config, i: bool(config.no_rope_layers[i])),
        Family(model_type="granite"),
        Family(model_type="gpt_oss"),
        Family(model_type="gemma"),
        Family(model_type="vaultgemma"),
        Family(model_type="arcee"),
        Family(model_type="bitnet", output_norm="attn_sub_norm"),
        Family(model_type="aria_text"),
        Family(model_type="cwm"),
        Family(model_type="ernie4_5"),
        Family(model_type="ernie4_5_moe"),
        Family(model_type="exaone"),
        Family(model_type="glm"),
        Family(model_type="glm4"),
        Family(model_type="granitemoe"),
        Family(model_type="granitemoeshared"),
        Family(model_type="helium"),
        Family(model_type="hyperclovax"),
        Family(model_type="internlm3"),
        Family(model_type="iquestcoder"),
        Family(model_type="jais2"),
        Family(model_type="ministral"),
        Family(model_type="nemotron"),
        Family(model_type="phimoe"),
        Family(model_type="qwen2_moe"),
        Family(model_type="seed_oss"),
        Family(model_type="solar_open"),
        Family(model_type="starcoder2"),
        Family(model_type="apertus", norms=QK_NORM),
        Family(model_type="apertus1p5_text", norms=QK_NORM),
        Family(model_type="dots1", norms=QK_NORM),
        Family(model_type="hy_v3", norms=QK_NORM),
        Family(model_type="glm4_moe", norms=QK_NORM, norms_if="use_qk_norm"),
        Family(model_type="sarvam_moe", norms=QK_NORM, norms_if="use_qk_norm"),
        Family(model_type="cohere", norms=QK_NORM, norms_if="use_qk_norm"),
        Family(model_type="cohere2", uses_rope=in_windows),
        Family(model_type="cohere2_moe", uses_rope=_rotated_in_dense_prefix),
        Family(model_type="flint", norms=QK_NORM, uses_rope=in_windows),
        Family(model_type="exaone4", norms=QK_NORM, uses_rope=in_windows_if_any),
        Family(model_type="exaone_moe", norms=QK_NORM, uses_rope=in_windows_if_any),
        Family(model_type="kolibri1", norms=QK_NORM, uses_rope=in_windows_if_any),
        Family(model_type="mellum", norms=QK_NORM, rope_by_layer_type=True),
        Family(model_type="olmo3", norms=QK_NORM, norm_spans_heads=True, rope_by_layer_type=True),
        Family(model_type="flex_olmo", norms=QK_NORM, norm_spans_heads=True),
        Family(model_type="minimax_m2", norms=QK_NORM, norm_spans_heads=True),
        Family(
            model_type="hunyuan_v1_dense",
            norms=("query_layernorm", "key_layernorm"),
            norms_follow_rotation=True,
        ),
        Family(
            model_type="hunyuan_v1_moe",
            norms=("query_layernorm", "key_layernorm"),
            norms_follow_rotation=True,
        ),
        Family(model_type="nanochat", norms=QK_NORM, norms_follow_rotation=True),
        Family(model_type="afmoe", norms=QK_NORM, uses_rope=in_windows, gate="gate_proj"),
        Family(model_type="ministral3", query_scale=_scale_of_long_texts),
        Family(model_type="olmo", refused_options={"clip_qkv": CLAMPED}),
        Family(
            model_type="olmoe",
            norms=QK_NORM,
            norm_spans_heads=True,
            refused_options={"clip_qkv": CLAMPED},
        ),
        Family(model_type="granite_swa", uses_rope=_rotated_by_theta, rotary=_rotary_of_theta),
        Family(model_type="granitemoe_swa", uses_rope=_rotated_by_theta, rotary=_rotary_of_theta),
        Family(
            model_type="gpt_bigcode",
            attention="transformer.h.{}.attn",
            projections=fused_by_sharing("c_attn"),
            output="c_proj",
            head_sizes=_shared_by_all,
            uses_rope=never,
        ),
        Family(
            model_type="falcon",
            attention="transformer.h.{}.self_attention",
            projections=fused_by_sharing("query_key_value", of_own_class),
            scaling="inv_norm_factor",
            output="dense",
            idle_dropouts=("attention_dropout", "hidden_dropout"),
            head_sizes=_shared_by_all,
            refused_options={
                "alibi": ALIBI,
                "new_decoder_architecture": "keys and values are repeated for every query head "
                "before they are cached",
            },
        ),
        Family(
            model_type="biogpt",
            attention="biogpt.layers.{}.self_attn",
            output="out_proj",
            uses_rope=never,
        ),
        Family(
            model_type="trocr",
            attention="model.decoder.layers.{}.self_attn",
            output="out_proj",
            uses_rope=never,
        ),
        Family(model_type="xglm", output="out_proj", uses_rope=never),
        Family(
            model_type="modernbert-decoder",
            attention="model.layers.{}.attn",
            output="Wo",
            rope_by_layer_type=True,
        ),
        Family(
            model_type="phi",
            output="dense",
            norms=QK_LAYERNORM,
            norms_if="qk_layernorm",
            rotates_first=True,
        ),
        Family(
            model_type="persimmon",
            projections=interleaved("query_key_value"),
            output="dense",
            norms=QK_LAYERNORM,
            norms_if="qk_layernorm",
            rotates_first=True,
        ),
        Family(
            model_type="stablelm",
            rotates_first=True,
            refused_options={"qk_layernorm": "every head has a norm of its own"},
        ),
        Family(model_type="deepseek_v3", caches_latents=True),
        Family(model_type="axk1", caches_latents=True),
        Family(model_type="glm4_moe_lite", caches_latents=True),
        Family(model_type="sarvam_mla", caches_latents=True),
        Family(model_type="youtu", caches_latents=True),
        Family(
            model_type="deepseek_v2",
            caches_latents=True,
            turns_neighbours=lambda config: True,
        ),
        Family(
            model_type="minicpm3",
            caches_latents=True,
            turns_neighbours=lambda config: False,
        ),
        Family(
            model_type="mistral4",
            caches_latents=True,
            query_scale=_scale_of_long_texts,
        ),
        Family(
            model_type="longcat_flash",
            attention="model.layers.{}.self_attn.{}",
            modules_per_layer=2,
            caches_latents=True,
            turns_neighbours=lambda config: True,
        ),
        Family(model_type="mamba", attends=False, continues_in_pieces=False),
        Family(model_type="falcon_mamba", attends=False, continues_in_pieces=False),
        Family(model_type="mamba2", attends=False),
        Family(
            model_type="jamba",
            uses_rope=never,
            continues_in_pieces=False,
        ),
        Family(model_type="bamba"),
        Family(model_type="falcon_h1"),
        Family(
            model_type="granitemoehybrid",
            uses_rope=lambda config, i: config.position_embedding_type == "rope",
        ),
        Family(
            model_type="nemotron_h",
            attention="model.layers.{}.mixer",
            uses_rope=never,
        ),
        Family(
            model_type="zamba2",
            attention="model.layers.{}.shared_transformer.self_attn",
            uses_rope=lambda config, i: bool(config.use_mem_rope),
            shares_with=lambda config, n: n % config.num_mem_blocks,
        ),
        Family(
            model_type="zamba",
            attention="model.layers.{}.shared_transf.self_attn",
            uses_rope=never,
            continues_in_pieces=False,
            shares_with=lambda config, n: 0,
        ),
        Family(
            model_type="qwen3_next",
            norms=QK_NORM,
            gated=True,
        ),
        Family(
            model_type="qwen3_5_text",
            norms=QK_NORM,
            position_axes=3,
            gated=True,
        ),
        Family(
            model_type="qwen3_5_moe_text",
            norms=QK_NORM,
            position_axes=3,
            gated=True,
        ),
        Family(model_type="lara_mini", norms=QK_NORM, uses_rope=in_windows),
        Family(model_type="lfm2", output="out_proj", norms=QK_LAYERNORM),
        Family(
            model_type="lfm3",
            norms=QK_NORM,
            rope_by_layer_type=True,
            gate="g_proj",
        ),
        Family(
            model_type="lfm2_moe",
            output="out_proj",
            norms=QK_LAYERNORM,
            rotary=lambda config, i: "pos_emb",
        ),
        Family(
            model_type="olmo_hybrid",
            norms=QK_NORM,
            norm_spans_heads=True,
            uses_rope=lambda config, i: (
                getattr(config, "rope_parameters", None) is not None
                and config.rope_parameters.get("rope_theta") is not None
            ),
        ),
    )
}
"""Every supported family, by `model_type`."""
