"""Tiny configs of families whose axes are all among those of `tiny_configs.CASES`, with every
option of their attention on. `test_rows.py` has what is tested of them.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from tests.families.tiny_sizes import COMMON, GDN, MOE, layers, rope

MULTI_HEAD = {**COMMON, "num_key_value_heads": 4}
ONE_KEY = {**COMMON, "num_key_value_heads": 1}
HEAD = {"head_dim": 16}
ROUTED = {"num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE = {"attention_multiplier": 0.2, "embedding_multiplier": 2.0, "logits_scaling": 2.0}
PARTIAL = {**COMMON, "hidden_size": 64, **rope(partial_rotary_factor=0.5)}
WINDOWS = {**COMMON, "sliding_window": 8, **layers("sliding_attention", "full_attention")}
WIDE_WINDOWS = {**WINDOWS, **HEAD}
DEEPSEEK_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
BY_LAYER_TYPE = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
}
GROUPED_EXPERTS = {**DEEPSEEK_EXPERTS, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5}
LATENT_SIZES = {
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 6,
}
"""All different, so that no two can be taken for each other."""
SCALED_YARN = rope(
    rope_type="yarn",
    factor=8.0,
    original_max_position_embeddings=32,
    mscale=0.7,
    mscale_all_dim=1.3,
)
MLA = {
    **COMMON,
    **GROUPED_EXPERTS,
    **LATENT_SIZES,
    **SCALED_YARN,
    "num_key_value_heads": 4,
    "attention_bias": True,
}
LLAMA3 = rope(
    5e5,
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)


def _known(**cases: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The cases that this release of transformers has a class for."""
    return {
        name.replace("__", "-"): {"model_type": name.partition("__")[0], **values}
        for name, values in cases.items()
        if name.partition("__")[0] in CONFIG_MAPPING
    }


MODERNBERT = {
    **{k: v for k, v in COMMON.items() if k != "num_key_value_heads"},
    **layers("full_attention", "sliding_attention", "full_attention"),
    "local_attention": 16,  # a window of half of it
    "attention_bias": True,
    "norm_bias": True,
    "mlp_bias": True,
    "decoder_bias": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 160000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


GEMMA4 = {
    **WIDE_WINDOWS,
    "global_head_dim": 24,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.5,
            "rope_theta": 1000000.0,
        },
    },
}
BARE = {k: v for k, v in COMMON.items() if k not in ("intermediate_size", "num_key_value_heads")}
FALCON = {
    **BARE,
    "ffn_hidden_size": 48,
    "alibi": False,
    "bias": True,
    "new_decoder_architecture": False,
}
ROW_CASES = _known(
    falcon={**FALCON, "multi_query": True},
    falcon__heads={**FALCON, "multi_query": False},
    gemma={**COMMON, **HEAD},
    vaultgemma={**WIDE_WINDOWS, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    arcee={**COMMON, **HEAD, "attention_bias": True, "mlp_bias": True},
    bitnet={**COMMON, "attention_bias": True},
    aria_text={**COMMON, **HEAD, "attention_bias": True, "moe_num_experts": 4, "moe_topk": 2},
    cwm={**WIDE_WINDOWS, **LLAMA3},
    ernie4_5={**COMMON, **HEAD, "use_bias": True},
    ernie4_5_moe={
        **COMMON,
        "use_bias": True,
        "moe_intermediate_size": 16,
        "moe_k": 2,
        "moe_num_experts": 4,
        "moe_layer_end_index": 2,
    },
    exaone={**COMMON, **HEAD, "attention_bias": True},
    gemma4_text__experts={
        **GEMMA4,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
    },
    gemma4_text__shared={
        **GEMMA4,
        **layers(
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ),
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
    },
    gemma4_unified_text={**GEMMA4, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
    glm={**PARTIAL, **HEAD, "attention_bias": True},
    glm4={**PARTIAL, **HEAD, "attention_bias": True},
    granitemoe={**COMMON, **GRANITE, **ROUTED, "attention_bias": True},
    granitemoeshared={**COMMON, **GRANITE, **ROUTED, "shared_intermediate_size": 32},
    helium={**COMMON, "head_dim": 8, "attention_bias": True},
    hyperclovax={**COMMON, **HEAD, **GRANITE, "attention_bias": True},
    internlm3={**COMMON, **HEAD, "attention_bias": True, "mlp_bias": True},
    iquestcoder={**COMMON, **HEAD, "attention_bias": True},
    jais2={**COMMON, **HEAD},
    ministral={**WINDOWS, **HEAD},
    nemotron={**PARTIAL, **HEAD, "attention_bias": True},
    phimoe={**COMMON, **ROUTED, "attention_bias": True, "sliding_window": 8},
    qwen2_moe={**COMMON, **MOE, "shared_expert_intermediate_size": 16},
    qwen2_moe__window={
        **COMMON,
        **MOE,
        "shared_expert_intermediate_size": 16,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    seed_oss={**COMMON, **HEAD, "attention_out_bias": True},
    solar_open={**COMMON, **HEAD, **DEEPSEEK_EXPERTS, "attention_bias": True},
    starcoder2={**COMMON},
    starcoder2__window={**COMMON, "sliding_window": 8},
    apertus={**COMMON, "attention_bias": True, **LLAMA3},
    apertus1p5_text={**COMMON, "attention_bias": True, **LLAMA3},
    dots1={**WINDOWS, **DEEPSEEK_EXPERTS, "attention_bias": True},
    hy_v3={**COMMON, **HEAD, **MOE, "attention_bias": True},
    glm4_moe={**PARTIAL, **DEEPSEEK_EXPERTS, "use_qk_norm": True, "attention_bias": True},
    glm4_moe__plain={**PARTIAL, **DEEPSEEK_EXPERTS, "use_qk_norm": False},
    sarvam_moe={**PARTIAL, **HEAD, **DEEPSEEK_EXPERTS, "use_qk_norm": True},
    cohere={**COMMON, "logit_scale": 1.0, "use_qk_norm": True, "attention_bias": True},
    cohere__plain={**COMMON, "logit_scale": 1.0, "use_qk_norm": False},
    cohere2={**WIDE_WINDOWS, "logit_scale": 1.0, "attention_bias": True},
    cohere2_moe={**WIDE_WINDOWS, "logit_scale": 1.0, "num_experts": 4, "num_experts_per_tok": 2},
    cohere2_moe__prefix={
        **WIDE_WINDOWS,
        "logit_scale": 1.0,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        **layers("full_attention", "full_attention", "sliding_attention"),
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "prefix_dense_sliding_window_pattern": 1,
    },
    flint={**WIDE_WINDOWS, **MOE, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
    exaone4={**WINDOWS, "sliding_window_pattern": 2},
    exaone4__plain={**COMMON, "sliding_window": None, **layers("full_attention")},
    exaone_moe={
        **WINDOWS,
        "sliding_window_pattern": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    kolibri1={
        **WIDE_WINDOWS,
        **ROUTED,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    mellum={**WIDE_WINDOWS, **ROUTED, **BY_LAYER_TYPE, "moe_intermediate_size": 16},
    olmo={**COMMON, "attention_bias": True},
    olmo3={**WINDOWS, **BY_LAYER_TYPE, "attention_bias": True},
    olmoe={**COMMON, "num_experts": 4, "num_experts_per_tok": 2, "attention_bias": True},
    flex_olmo={**COMMON, "num_experts": 4, "num_experts_per_tok": 2, "attention_bias": True},
    minimax_m2={**PARTIAL, **HEAD, **ROUTED},
    afmoe={
        **WIDE_WINDOWS,
        "attention_bias": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    hunyuan_v1_moe={**COMMON, **HEAD, "attention_bias": True, "num_experts": 4, "moe_topk": 2},
    nanochat={**COMMON, "attention_bias": True},
    lfm3={
        **WIDE_WINDOWS,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": 1000000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        **layers("conv", "sliding_attention", "full_attention"),
    },
    granite_swa={**WINDOWS, **GRANITE, "layer_rope_theta": [10000.0, 500000.0]},
    granitemoe_swa={
        **WINDOWS,
        **GRANITE,
        **ROUTED,
        **layers("sliding_attention", "full_attention", "full_attention"),
        "layer_rope_theta": [500000.0, 10000.0, 0.0],
    },
    gpt_bigcode=ONE_KEY,
    gpt_bigcode__apart={**MULTI_HEAD, "multi_query": False, "scale_attn_weights": False},
    biogpt=MULTI_HEAD,
    phi4_multimodal={
        **{**COMMON, "hidden_size": 64},
        **rope(partial_rotary_factor=0.75),
        "sliding_window": None,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "crop_size": 16,
            "patch_size": 4,
            "image_token_id": 94,
        },
        "audio_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "input_size": 8,
            "audio_token_id": 95,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 16,
        },
    },
    trocr={
        "vocab_size": 96,
        "d_model": 32,
        "decoder_layers": 3,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 256,
        "scale_embedding": True,
        "layernorm_embedding": True,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": None,
    },
    xglm={
        **{
            k: v for k, v in COMMON.items() if k not in ("intermediate_size", "num_key_value_heads")
        },
        "ffn_dim": 48,
        "dropout": 0.0,
        "scale_embedding": True,
    },
    phi={**PARTIAL, "qk_layernorm": True},
    phi__plain={**PARTIAL, "qk_layernorm": False},
    persimmon={**PARTIAL, "num_key_value_heads": 4, "qk_layernorm": True},
    stablelm={**PARTIAL, "use_qkv_bias": True},
    lfm2_moe={
        **COMMON,
        **MOE,
        **layers("conv", "full_attention", "full_attention"),
        "num_dense_layers": 1,
    },
    deepseek_v3__plain={**MLA, **rope(), "q_lora_rank": None, "attention_bias": False},
    deepseek_v3__halves={**MLA, "rope_interleave": False},
    deepseek_v2__compressed_queries=MLA,
    axk1=MLA,
    glm4_moe_lite=MLA,
    sarvam_mla=MLA,
    youtu=MLA,
    minicpm3={
        **MLA,
        **rope(
            rope_type="longrope",
            factor=2.0,
            original_max_position_embeddings=128,
            short_factor=[1.0, 1.1, 1.2, 1.3],
            long_factor=[1.0, 2.0, 3.0, 4.0],
        ),
    },
    mistral4={
        **MLA,
        "rope_parameters": {
            **SCALED_YARN["rope_parameters"],
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.5,
        },
    },
    longcat_flash={
        **{k: v for k, v in MLA.items() if k not in ("num_hidden_layers", "intermediate_size")},
        "num_layers": 2,
        "head_dim": 8,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "moe_topk": 2,
        "zero_expert_num": 1,
    },
    lara_mini={
        **COMMON,
        **HEAD,
        **MOE,
        **GDN,
        **layers("linear_attention", "sliding_attention", "full_attention"),
        "sliding_window": 8,
        "shared_expert_intermediate_size": 16,
    },
    **{"modernbert-decoder": MODERNBERT},
)
"""By name of the case: the model type, and what is tried of it behind a dash."""
