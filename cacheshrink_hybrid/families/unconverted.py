"""Families that are known and not converted: the reasons, and the layouts of those whose bytes can
be counted all the same.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from .family import Family, HeadSizes, never
from .rows import ALIBI

IMAGE_POSITIONS = (
    "its images have positions of their own in three directions, and keys are rotated by their slot"
)
ENCODER = (
    "it is built as BERT, an encoder, whose attention is not causal by itself, and whose output "
    "projection lies in a module behind it"
)
OWN_STATE = "it has no attention, and keeps states of a form of its own"
CONVOLVED = "short convolutions, with states of their own, run over its keys and values"
INDEXED = "it chooses what its queries read by an index of keys, which is cached beside the others"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("bloom", "mpt"), ALIBI),
    **dict.fromkeys(("rwkv", "xlstm"), OWN_STATE),
    **dict.fromkeys(("zaya", "inkling_text", "inkling2_text", "inkling2_loop_text"), CONVOLVED),
    **dict.fromkeys(
        (
            "axk2",
            "deepseek_v32",
            "dots3_note",
            "dots3_note_text",
            "glm5_next",
            "glm_moe_dsa",
            "hy_v4",
            "hy_v4_vl",
            "mistral_large4",
            "qwen4_exp",
            "qwen4_exp_text",
            "minimax_m3_vl_text",
        ),
        INDEXED,
    ),
    "dory": "its queries and gates are scaled channel by channel after their norms, and tokens go "
    "through its layers several times",
    "deepseek_v4": "it caches latents already, of several tokens each",
    "diffllama": "its attention is the difference of two",
    "doge": "a mask that is made of the values decides what its queries see",
    "dbrx": "queries, keys and values come from one clamped projection",
    "jetmoe": "its attention heads are experts that a router chooses",
    "laguna": "its layers differ in their numbers of heads",
    "mimo_v2_flash": "its values are narrower than its keys",
    "hrm_text": "every token goes through its two stacks of layers several times",
    "cacheshrink_hybrid": "it is a converted model already; convert its source instead, or load it "
    "with load_mla_model",
    "recurrent_gemma": "it keeps its recurrent state on its modules instead of in the cache, so "
    "beam search, padding and cache reuse are wrong in the source model already",
    "kimi_linear": "its delta rule decays every key channel by itself, so that no basis but the "
    "given one commutes with it",
    "bailing_hybrid": "its linear attention keeps states of a form of its own",
    "samba": "transformers has no model class for it, and remote code brings a cache of its own",
    "hymba": "its remote code keeps convolution and recurrent states in a cache class of its own "
    "and shares keys and values between layers",
    "minimax": "it requires a cache class of its own and is wrong with left padding and beams in "
    "the source model already",
    "paligemma": "it reads its prompts in both directions, and only causal attention is converted",
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "its layers read the keys and values of another model; convert that one",
    ),
    "llama4": "transformers 5.24 ends every pass of the whole model in an error, with images or "
    "without (it asks its text model's output for image_outputs); convert its text model alone",
    **dict.fromkeys(
        ("minicpmv4_7", "qwen3_5", "qwen3_5_moe"),
        f"{IMAGE_POSITIONS}; convert its text model alone",
    ),
    **dict.fromkeys(
        (
            "cohere_compass",
            "cosmos3_edge",
            "cosmos3_omni",
            "ernie4_5_vl_moe",
            "glm46v",
            "glm4v",
            "glm4v_moe",
            "glm_ocr",
            "glmga",
            "hunyuan_vl",
            "paddleocr_vl",
            "qwen2_5_omni_thinker",
            "qwen2_5_vl",
            "qwen2_vl",
            "qwen3_omni_moe_thinker",
            "qwen3_vl",
            "qwen3_vl_moe",
        ),
        IMAGE_POSITIONS,
    ),
    **dict.fromkeys(
        (
            "bert",
            "bert-generation",
            "big_bird",
            "blip_text_model",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ),
        ENCODER,
    ),
}
"""Families that are known and not converted, with the reason."""


def _samba_heads(config: PretrainedConfig) -> HeadSizes:
    heads = config.attn["num_heads"]
    return HeadSizes(heads, config.attn.get("num_kv_heads") or heads, config.hidden_size // heads)


def _samba_layers(config: PretrainedConfig) -> list[str]:
    """Attention in the listed layers, always with a window, and Mamba in the others."""
    attention = set(config.attn["layers"])
    return [
        "sliding_attention" if i in attention else "linear_attention"
        for i in range(config.num_hidden_layers)
    ]


def _hymba_layers(config: PretrainedConfig) -> list[str]:
    """Attention and Mamba side by side in every layer; few layers see everything. A layer that
    reads the keys and values of the one before caches none of its own."""
    seeing_all = set(config.global_attn_idx or ())
    readers = {i for group in config.kv_reuse_group or () for i in group[1:]}
    return [
        "linear_attention" if i in readers else "hybrid" if i in seeing_all else "sliding_hybrid"
        for i in range(config.num_hidden_layers)
    ]


LAYOUTS: dict[str, Family] = {
    row.model_type: row
    for row in (
        Family(model_type="recurrent_gemma"),
        *(
            Family(model_type=f"{name}_text")
            for name in (
                "ernie4_5_vl_moe",
                "glm4v",
                "glm4v_moe",
                "glm_ocr",
                "hunyuan_vl",
                "paddleocr_vl",
                "qwen2_5_omni",
                "qwen2_5_vl",
                "qwen2_vl",
                "qwen3_omni_moe",
                "qwen3_vl",
                "qwen3_vl_moe",
            )
        ),
        Family(model_type="kimi_linear", uses_rope=never, caches_latents=True),
        Family(
            model_type="samba",
            head_sizes=_samba_heads,
            layer_types=_samba_layers,
            window=lambda config: config.attn["window_size"],
        ),
        Family(
            model_type="hymba",
            layer_types=_hymba_layers,
            window=lambda config: config.attn_window_size,
        ),
    )
}
"""Families whose bytes can be counted and that are not converted."""
