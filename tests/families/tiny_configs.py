"""Tiny configs of every supported family, one row each, small enough for a CPU and full of traps:
grouped queries, biases, head_dim != hidden / heads, windows shorter than the text, rope scalings.
"""

from __future__ import annotations

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from cacheshrink_hybrid.checkpoint.model_class import auto_class_of
from tests.families.row_configs import MLA, ROW_CASES
from tests.families.tiny_sizes import COMMON, GDN, MAMBA2, MOE, layers, rope

WEIGHT_GAIN = 5.0

GPT = dict(
    n_embd=32,
    n_layer=3,
    n_head=4,
    n_positions=256,
    vocab_size=96,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=False,
)
CASES: dict[str, dict] = {
    "gpt2": dict(
        model_type="gpt2",
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=256,
        vocab_size=96,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "gpt2-layer-scaling": dict(
        model_type="gpt2",
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=256,
        vocab_size=96,
        scale_attn_by_inverse_layer_idx=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "gpt_neox": dict(
        model_type="gpt_neox",
        **rope(partial_rotary_factor=0.25),
        **{**COMMON, "hidden_size": 64, "num_key_value_heads": None},
    ),
    "opt": dict(
        model_type="opt",
        ffn_dim=48,
        word_embed_proj_dim=32,
        **{
            k: v for k, v in COMMON.items() if k not in ("intermediate_size", "num_key_value_heads")
        },
    ),
    "gptj": dict(model_type="gptj", rotary_dim=4, **GPT),
    "codegen": dict(model_type="codegen", rotary_dim=4, **GPT),
    "gpt_neo": dict(
        model_type="gpt_neo",
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=6,
        **{name: COMMON[name] for name in COMMON if not name.startswith("num_")},
    ),
    "llama4_text": dict(
        model_type="llama4_text",
        head_dim=8,
        attention_chunk_size=6,
        no_rope_layers=[1, 1, 0, 1],
        use_qk_norm=True,
        attention_bias=True,
        attn_temperature_tuning=True,
        floor_scale=4,
        attn_scale=0.3,
        intermediate_size_mlp=48,
        num_local_experts=2,
        moe_layers=[1],
        **{**COMMON, "num_hidden_layers": 4},
    ),
    "llama": dict(model_type="llama", **COMMON),
    "llama-mha": dict(model_type="llama", **{**COMMON, "num_key_value_heads": 4}),
    "llama-mqa": dict(model_type="llama", **{**COMMON, "num_key_value_heads": 1}),
    "llama-biases": dict(model_type="llama", attention_bias=True, **COMMON),
    "llama-theta": dict(model_type="llama", **rope(5e5), **COMMON),
    "llama-head-dim": dict(
        model_type="llama", head_dim=64, **{**COMMON, "hidden_size": 256, "num_hidden_layers": 2}
    ),
    "llama-linear": dict(model_type="llama", **rope(rope_type="linear", factor=4.0), **COMMON),
    "llama-dynamic": dict(model_type="llama", **rope(rope_type="dynamic", factor=2.0), **COMMON),
    "llama-llama3": dict(
        model_type="llama",
        **rope(
            5e5,
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
        **COMMON,
    ),
    "llama-yarn": dict(
        model_type="llama",
        **rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
        **COMMON,
    ),
    "mistral": dict(model_type="mistral", sliding_window=None, **COMMON),
    "mistral-window": dict(model_type="mistral", sliding_window=8, **COMMON),
    "mixtral": dict(
        model_type="mixtral",
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
        **COMMON,
    ),
    "qwen2": dict(model_type="qwen2", **COMMON),
    "qwen2-window": dict(
        model_type="qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1, **COMMON
    ),
    "qwen3": dict(model_type="qwen3", head_dim=16, **COMMON),
    "qwen3_moe": dict(model_type="qwen3_moe", head_dim=16, **MOE, **COMMON),
    "gemma2": dict(
        model_type="gemma2",
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        attn_logit_softcapping=2.0,
        **COMMON,
    ),
    "gemma3_text": dict(
        model_type="gemma3_text",
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        **layers("sliding_attention", "sliding_attention", "full_attention"),
        **{k: v for k, v in COMMON.items() if k != "num_hidden_layers"},
    ),
    "phi3": dict(model_type="phi3", sliding_window=None, **COMMON),
    "phi3-partial": dict(
        model_type="phi3",
        sliding_window=None,
        **rope(partial_rotary_factor=0.5),
        **{**COMMON, "hidden_size": 64},
    ),
    "phi3-longrope": dict(
        model_type="phi3",
        sliding_window=None,
        original_max_position_embeddings=128,
        **rope(
            rope_type="longrope",
            short_factor=[1.0, 1.1, 1.2, 1.3],
            long_factor=[2.0, 2.5, 3.0, 4.0],
            original_max_position_embeddings=128,
        ),
        **COMMON,
    ),
    "olmo2": dict(model_type="olmo2", **COMMON),
    "smollm3": dict(
        model_type="smollm3", no_rope_layers=[1, 1, 0], no_rope_layer_interval=3, **COMMON
    ),
    "granite": dict(model_type="granite", attention_multiplier=0.2, **COMMON),
    "hunyuan_v1_dense": dict(
        model_type="hunyuan_v1_dense", head_dim=16, attention_bias=True, **COMMON
    ),
    "ministral3": dict(
        model_type="ministral3",
        head_dim=16,
        **rope(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=8,
            llama_4_scaling_beta=0.5,
            mscale=1.0,
            mscale_all_dim=0.8,
        ),
        **COMMON,
    ),
    "gemma3n_text": dict(
        model_type="gemma3n_text",
        head_dim=16,
        attention_bias=True,
        sliding_window=8,
        num_kv_shared_layers=3,
        altup_num_inputs=2,
        laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.5, 0.5, 0.0, 0.0, 0.0],
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=96,
        **{
            **COMMON,
            **layers(
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ),
        },
    ),
    "gemma4_text": dict(
        model_type="gemma4_text",
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        attention_bias=True,
        sliding_window=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=96,
        final_logit_softcapping=10.0,
        **{**COMMON, **layers("sliding_attention", "full_attention", "full_attention")},
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.5,
                "rope_theta": 1000000.0,
            },
        },
    ),
    "gpt_oss": dict(
        model_type="gpt_oss",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        **layers("sliding_attention", "full_attention"),
        **rope(
            150000.0,
            rope_type="yarn",
            factor=4.0,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
            original_max_position_embeddings=64,
        ),
        **{k: v for k, v in COMMON.items() if k != "num_hidden_layers"},
    ),
    "jamba": dict(
        model_type="jamba",
        attn_layer_offset=1,
        attn_layer_period=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        num_experts_per_tok=1,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=4,
        **COMMON,
    ),
    "bamba": dict(
        model_type="bamba", attn_layer_indices=[1], partial_rotary_factor=0.5, **MAMBA2, **COMMON
    ),
    "falcon_h1": dict(
        model_type="falcon_h1",
        mamba_d_ssm=64,
        key_multiplier=0.7,
        attention_in_multiplier=1.3,
        **MAMBA2,
        **COMMON,
    ),
    "granitemoehybrid": dict(
        model_type="granitemoehybrid",
        attention_multiplier=0.2,
        shared_intermediate_size=32,
        num_local_experts=2,
        num_experts_per_tok=1,
        **MAMBA2,
        **{**COMMON, **layers("mamba", "attention", "mamba")},
    ),
    "granitemoehybrid-rope": dict(
        model_type="granitemoehybrid",
        attention_multiplier=0.2,
        shared_intermediate_size=32,
        num_local_experts=0,
        num_experts_per_tok=0,
        position_embedding_type="rope",
        **MAMBA2,
        **{**COMMON, **layers("mamba", "attention", "attention")},
    ),
    "nemotron_h": dict(
        model_type="nemotron_h",
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=1,
        ssm_state_size=8,
        conv_kernel=4,
        chunk_size=8,
        expand=2,
        layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
        **{**COMMON, "num_hidden_layers": 4},
    ),
    "zamba2": dict(
        model_type="zamba2",
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_ngroups=1,
        n_mamba_heads=4,
        chunk_size=8,
        use_mem_rope=True,
        num_mem_blocks=2,
        layers_block_type=[
            "linear_attention",
            "hybrid",
            "hybrid",
            "linear_attention",
            "hybrid",
            "hybrid",
        ],
        **{**COMMON, "num_key_value_heads": 4, "num_hidden_layers": 6, "tie_word_embeddings": True},
    ),
    "zamba2-adapters": dict(
        model_type="zamba2",
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_ngroups=1,
        n_mamba_heads=4,
        chunk_size=8,
        use_mem_rope=False,
        num_mem_blocks=1,
        use_shared_attention_adapter=True,
        adapter_rank=4,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
        **{**COMMON, "num_key_value_heads": 4, "num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
    "zamba": dict(
        model_type="zamba",
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_expand=2,
        n_mamba_heads=2,
        mamba_dt_rank=4,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
        **{**COMMON, "num_key_value_heads": 4, "num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
    "qwen3_next": dict(
        model_type="qwen3_next",
        head_dim=8,
        partial_rotary_factor=0.25,
        **MOE,
        **GDN,
        shared_expert_intermediate_size=16,
        **{**COMMON, **layers("linear_attention", "full_attention", "linear_attention")},
    ),
    "qwen3_5_text": dict(
        model_type="qwen3_5_text",
        head_dim=16,
        partial_rotary_factor=0.25,
        **GDN,
        **{**COMMON, **layers("linear_attention", "full_attention", "linear_attention")},
    ),
    "qwen3_5_moe_text": dict(
        model_type="qwen3_5_moe_text",
        head_dim=16,
        partial_rotary_factor=0.25,
        shared_expert_intermediate_size=16,
        **MOE,
        **GDN,
        **{**COMMON, **layers("linear_attention", "full_attention", "linear_attention")},
    ),
    "lfm2": dict(
        model_type="lfm2",
        conv_L_cache=3,
        block_ff_dim=48,
        block_auto_adjust_ff_dim=False,
        **{**COMMON, **layers("conv", "full_attention", "full_attention")},
    ),
    "olmo_hybrid": dict(
        model_type="olmo_hybrid",
        **{**GDN, "linear_num_key_heads": 4},
        **{**COMMON, **layers("linear_attention", "full_attention", "full_attention")},
        **rope(),
    ),
    "olmo_hybrid-nope": dict(
        model_type="olmo_hybrid",
        rope_parameters={"rope_type": "default", "rope_theta": None},
        **{**GDN, "linear_num_key_heads": 4},
        **{**COMMON, **layers("linear_attention", "full_attention", "full_attention")},
    ),
}

_MAMBA = {k: COMMON[k] for k in ("vocab_size", "hidden_size") if k in COMMON} | {
    "num_hidden_layers": 2,
    "state_size": 8,
    "conv_kernel": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CASES |= {
    "deepseek_v3": dict(model_type="deepseek_v3", **MLA),
    "deepseek_v2": dict(model_type="deepseek_v2", **{**MLA, "q_lora_rank": None}),
}
RECURRENT_CASES: dict[str, dict] = {
    "mamba": dict(model_type="mamba", **_MAMBA),
    "falcon_mamba": dict(model_type="falcon_mamba", **_MAMBA),
    "mamba2": dict(
        model_type="mamba2", num_heads=4, head_dim=16, n_groups=2, chunk_size=8, **_MAMBA
    ),
}
"""Models without attention."""


AXES = {
    "gpt2": "learned positions, fused projections with biases",
    "llama": "rotary positions, grouped queries",
    "gemma2": "windows, softcaps",
    "gemma4_text": "norms of values, sizes by layer, keys that are values",
    "gemma3n_text": "layers that read the keys and values of others",
    "gpt_oss": "sinks, mixture of experts",
    "qwen3": "norms of queries and keys",
    "hunyuan_v1_dense": "norms after the rotation",
    "ministral3": "queries that grow with their position",
    "gptj": "angles of its own, neighbours that rotate together",
    "gpt_neo": "windows that masks do not show, no scale",
    "llama4_text": "chunks of the text, scales by slot",
    "jamba": "Mamba-1",
    "granitemoehybrid": "Mamba-2, multipliers",
    "qwen3_next": "delta rule, gates",
    "zamba2-adapters": "one attention for several layers, with adapters",
    "deepseek_v3": "latents of its own, a rotary key for all heads",
    "mamba2": "no attention",
}
"""One case of every way in which families differ: all that quick tests, and tests of what does not
depend on the family, are run on."""


def tiny_config(case: str, **changes) -> PretrainedConfig:
    """The config of one case, with `changes` to its values."""
    values = {**(CASES | RECURRENT_CASES | ROW_CASES)[case], **changes}
    return AutoConfig.for_model(values.pop("model_type"), **values)


def tiny_model(
    case: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes
) -> PreTrainedModel:
    """A seeded model of one case whose attention matters.

    Fresh weights are so small that attention is nearly uniform and logits nearly equal, which hides
    mistakes; here matrices are larger, and norms, biases and sinks are not at their neutral values.
    """
    torch.manual_seed(seed)
    config = tiny_config(case, **changes)
    # Older transformers give them an SDPA that leaves their softcap out.
    capped = config.model_type in ("gemma2", "vaultgemma")
    choice = {"attn_implementation": "eager"} if capped else {}
    return shaken(auto_class_of(config).from_config(config, dtype=dtype, **choice).eval())


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights that matter, in place."""
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "conv" not in name and "A_log" not in name:
                parameter.mul_(WEIGHT_GAIN)
            elif name.endswith(("bias", "sinks")) or "norm" in name or "ln_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model
