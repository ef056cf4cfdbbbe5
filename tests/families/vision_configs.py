"""Tiny vision-language models, each with what its processor would make of one image and a text."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig

from tests.families.tiny_configs import shaken
from tests.families.tiny_sizes import COMMON, layers
from tests.models import random_ids

IMAGE_TOKEN = 95
SIDE = 28
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 7,
}
CLIP = {**VISION, "model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP = {**VISION, "model_type": "siglip_vision_model"}
PATCHES = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 7,
    "window_size": SIDE,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}
LLAMA = {**COMMON, "model_type": "llama"}
QWEN2 = {**COMMON, "model_type": "qwen2"}
QWEN3 = {**COMMON, "model_type": "qwen3", "head_dim": 16}
GEMMA4 = {
    **COMMON,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "sliding_window": 8,
    "use_bidirectional_attention": "vision",
    **layers("sliding_attention", "full_attention"),
}
COHERE = {
    **COMMON,
    "model_type": "cohere2",
    "head_dim": 16,
    "logit_scale": 1.0,
    "sliding_window": 8,
    **layers("sliding_attention", "full_attention"),
}


@dataclass(frozen=True, kw_only=True)
class VisionCase:
    """A whole model, and an image of it.

    Attributes:
        num_tokens: that an image takes in the text.
        image: shape of `pixel_values`.
        given: what else goes with an image.
        types: name of a mask of image tokens, for models whose image tokens see each other.
    """

    num_tokens: int
    values: dict[str, Any]
    image: tuple[int, ...] = (1, 3, SIDE, SIDE)
    given: dict[str, Any] = field(default_factory=dict)
    types: str | None = None


def _known(**cases: VisionCase) -> dict[str, VisionCase]:
    """The cases that this release of transformers has a class for."""
    return {name: case for name, case in cases.items() if name in CONFIG_MAPPING}


VISION_CASES = _known(
    llava=VisionCase(
        num_tokens=16,
        values={"text_config": LLAMA, "vision_config": CLIP, "image_token_index": IMAGE_TOKEN},
    ),
    vipllava=VisionCase(
        num_tokens=16,
        values={
            "text_config": LLAMA,
            "vision_config": CLIP,
            "image_token_index": IMAGE_TOKEN,
            "vision_feature_layers": [-1, -2],
            "vision_feature_layer": [-1, -2],
        },
    ),
    llava_next=VisionCase(
        num_tokens=36,
        values={
            "text_config": LLAMA,
            "vision_config": CLIP,
            "image_token_index": IMAGE_TOKEN,
            "image_grid_pinpoints": [[SIDE, SIDE]],
        },
        image=(1, 2, 3, SIDE, SIDE),
        given={"image_sizes": torch.tensor([[SIDE, SIDE]])},
    ),
    llava_onevision=VisionCase(
        num_tokens=36,
        values={
            "text_config": QWEN2,
            "vision_config": SIGLIP,
            "image_token_index": IMAGE_TOKEN,
            "image_grid_pinpoints": [[SIDE, SIDE]],
        },
        image=(1, 2, 3, SIDE, SIDE),
        given={"image_sizes": torch.tensor([[SIDE, SIDE]])},
    ),
    gemma3=VisionCase(
        num_tokens=4,
        values={
            "text_config": {
                **COMMON,
                "model_type": "gemma3_text",
                "head_dim": 16,
                "query_pre_attn_scalar": 16,
                "sliding_window": 8,
                **layers("sliding_attention", "full_attention"),
            },
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE_TOKEN,
            "boi_token_index": 93,
            "eoi_token_index": 94,
            "tie_word_embeddings": False,
        },
        types="token_type_ids",
    ),
    gemma3n=VisionCase(
        num_tokens=4,
        values={
            "text_config": {
                **COMMON,
                "model_type": "gemma3n_text",
                "head_dim": 16,
                "sliding_window": 8,
                "num_kv_shared_layers": 2,
                "altup_num_inputs": 2,
                "laurel_rank": 4,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": 93,
                **layers(*["sliding_attention", "full_attention"] * 2),
            },
            "vision_config": {
                "hidden_size": 32,
                "vocab_offset": 93,
                "vocab_size": 2,
                "num_labels": 2,
            },
            "audio_config": {
                "hidden_size": 32,
                "vocab_offset": IMAGE_TOKEN,
                "vocab_size": 1,
                "conf_num_hidden_layers": 1,
                "conf_num_attention_heads": 2,
                "sscp_conv_channel_size": [4, 4],
            },
            "vision_soft_tokens_per_image": 4,
            "image_token_id": IMAGE_TOKEN,
            "audio_token_id": 94,
        },
    ),
    gemma4=VisionCase(
        num_tokens=4,
        values={
            "text_config": {
                **GEMMA4,
                "model_type": "gemma4_text",
                "num_kv_shared_layers": 2,
                **layers(*["sliding_attention", "full_attention"] * 2),
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": 96,
            },
            "vision_config": {
                **VISION,
                "model_type": "gemma4_vision",
                "num_key_value_heads": 4,
                "head_dim": 8,
                "pooling_kernel_size": 2,
                "position_embedding_size": 16,
            },
            "audio_config": None,
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": 94,
            "audio_token_id": 93,
            "tie_word_embeddings": False,
        },
        image=(1, 16, 3 * 7 * 7),
        given={"image_position_ids": torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]},
        types="mm_token_type_ids",
    ),
    gemma4_unified=VisionCase(
        num_tokens=4,
        values={
            "text_config": {**GEMMA4, "model_type": "gemma4_unified_text"},
            "vision_config": {
                "model_type": "gemma4_unified_vision",
                "patch_size": 7,
                "pooling_kernel_size": 2,
                "mm_embed_dim": 32,
                "mm_posemb_size": 4,
                "output_proj_dims": 32,
            },
            "audio_config": None,
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": 94,
            "audio_token_id": 93,
            "tie_word_embeddings": False,
        },
        image=(1, 4, 3 * 14 * 14),
        given={"image_position_ids": torch.cartesian_prod(torch.arange(2), torch.arange(2))[None]},
        types="mm_token_type_ids",
    ),
    mistral3=VisionCase(
        num_tokens=4,
        values={
            "text_config": {**COMMON, "model_type": "mistral", "sliding_window": None},
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 8},
            "image_token_index": IMAGE_TOKEN,
            "tie_word_embeddings": False,
        },
        given={"image_sizes": torch.tensor([[SIDE, SIDE]])},
    ),
    internvl=VisionCase(
        num_tokens=4,
        values={
            "text_config": QWEN2,
            "vision_config": {
                **VISION,
                "model_type": "internvl_vision",
                "image_size": [SIDE, SIDE],
                "patch_size": [7, 7],
            },
            "image_token_id": IMAGE_TOKEN,
            "image_seq_length": 4,
            "tie_word_embeddings": False,
        },
    ),
    idefics3=VisionCase(
        num_tokens=4,
        values={
            "text_config": LLAMA,
            "vision_config": VISION,
            "image_token_id": IMAGE_TOKEN,
            "pad_token_id": 0,
        },
        image=(1, 1, 3, SIDE, SIDE),
    ),
    smolvlm=VisionCase(
        num_tokens=4,
        values={
            "text_config": LLAMA,
            "vision_config": VISION,
            "image_token_id": IMAGE_TOKEN,
            "pad_token_id": 0,
        },
        image=(1, 1, 3, SIDE, SIDE),
    ),
    aya_vision=VisionCase(
        num_tokens=4,
        values={
            "text_config": COHERE,
            "vision_config": SIGLIP,
            "image_token_index": IMAGE_TOKEN,
            "tie_word_embeddings": False,
        },
    ),
    cohere2_vision=VisionCase(
        num_tokens=4,
        values={
            "text_config": COHERE,
            "vision_config": SIGLIP,
            "image_token_id": IMAGE_TOKEN,
            "alignment_intermediate_size": 64,
            "tie_word_embeddings": False,
        },
    ),
    idefics2=VisionCase(
        num_tokens=4,
        values={
            "text_config": {**COMMON, "model_type": "mistral", "sliding_window": None},
            "vision_config": {**VISION, "model_type": "idefics2_vision"},
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            },
            "image_token_id": IMAGE_TOKEN,
        },
        image=(1, 1, 3, SIDE, SIDE),
    ),
    qianfan_ocr=VisionCase(
        num_tokens=4,
        values={
            "text_config": QWEN3,
            "vision_config": {**VISION, "image_size": [SIDE, SIDE], "patch_size": [7, 7]},
            "image_token_id": IMAGE_TOKEN,
            "image_seq_length": 4,
            "tie_word_embeddings": False,
        },
    ),
    lighton_ocr=VisionCase(
        num_tokens=4,
        values={
            "text_config": QWEN3,
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 8},
            "image_token_id": IMAGE_TOKEN,
            "tie_word_embeddings": False,
        },
        given={"image_sizes": torch.tensor([[SIDE, SIDE]])},
    ),
    ovis2=VisionCase(
        num_tokens=16,
        values={
            "text_config": QWEN2,
            "vision_config": {**VISION, "model_type": "ovis2_vision", "vocab_size": 64},
            "image_token_id": IMAGE_TOKEN,
            "visual_indicator_token_ids": [90, 91, 92, 93, 94],
            "vocab_size": 96,
            "hidden_size": 32,
            "tie_word_embeddings": False,
        },
    ),
    aria=VisionCase(
        num_tokens=4,
        values={
            "text_config": {
                **COMMON,
                "model_type": "aria_text",
                "moe_num_experts": 4,
                "moe_topk": 2,
                "head_dim": 16,
            },
            "vision_config": {**VISION, "model_type": "idefics3_vision"},
            "projector_patch_to_query_dict": {16: 4},
            "image_token_index": IMAGE_TOKEN,
        },
    ),
    lfm2_vl=VisionCase(
        num_tokens=4,
        values={
            "text_config": {
                **COMMON,
                "model_type": "lfm2",
                "conv_L_cache": 3,
                "block_ff_dim": 48,
                "block_auto_adjust_ff_dim": False,
                **layers("conv", "full_attention"),
            },
            "vision_config": {
                **VISION,
                "model_type": "siglip2_vision_model",
                "num_patches": 16,
            },
            "image_token_id": IMAGE_TOKEN,
            "projector_hidden_size": 32,
            "tie_word_embeddings": False,
        },
        image=(1, 16, 3 * 7 * 7),
        given={
            "spatial_shapes": torch.tensor([[4, 4]]),
            "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        },
    ),
    janus=VisionCase(
        num_tokens=16,
        values={
            "text_config": LLAMA,
            "vision_config": {**VISION, "model_type": "janus_vision_model", "projection_dim": 32},
            "vq_config": {
                "embed_dim": 8,
                "num_embeddings": 16,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1],
                "num_res_blocks": 1,
                "projection_dim": 32,
                "image_token_embed_dim": 32,
            },
            "image_token_id": IMAGE_TOKEN,
            "tie_word_embeddings": False,
        },
    ),
    got_ocr2=VisionCase(
        num_tokens=1,
        values={
            "text_config": QWEN2,
            "vision_config": {
                "hidden_size": 32,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 64,
                "window_size": 2,
                "global_attn_indexes": [1],
                "mlp_dim": 48,
                "initializer_range": 0.02,
            },
            "image_token_index": IMAGE_TOKEN,
            "image_seq_length": 1,
            "tie_word_embeddings": False,
        },
        image=(1, 3, 64, 64),
    ),
    llava_next_video=VisionCase(
        num_tokens=36,
        values={
            "text_config": LLAMA,
            "vision_config": CLIP,
            "image_token_index": IMAGE_TOKEN,
            "video_token_index": 94,
            "image_grid_pinpoints": [[SIDE, SIDE]],
        },
        image=(1, 2, 3, SIDE, SIDE),
        given={"image_sizes": torch.tensor([[SIDE, SIDE]])},
    ),
    deepseek_vl=VisionCase(
        num_tokens=16,
        values={
            "text_config": LLAMA,
            "vision_config": SIGLIP,
            "image_token_id": IMAGE_TOKEN,
            "tie_word_embeddings": False,
        },
    ),
    exaone4_5=VisionCase(
        num_tokens=4,
        values={
            "text_config": {
                **COMMON,
                "model_type": "exaone4",
                "sliding_window": 8,
                "sliding_window_pattern": 2,
                **layers("sliding_attention", "full_attention"),
            },
            "vision_config": {**PATCHES, "num_key_value_heads": 2},
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": 94,
        },
        image=(16, 3 * 2 * 7 * 7),
        given={"image_grid_thw": torch.tensor([[1, 4, 4]])},
    ),
    hyperclovax_vision_v2=VisionCase(
        num_tokens=4,
        values={
            "text_config": {**COMMON, "model_type": "hyperclovax", "attention_multiplier": 0.2},
            "vision_config": {**PATCHES, "model_type": "qwen2_5_vl_vision"},
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": 94,
            "tie_word_embeddings": False,
        },
        image=(16, 3 * 2 * 7 * 7),
        given={"image_grid_thw": torch.tensor([[1, 4, 4]])},
    ),
    video_llama_3=VisionCase(
        num_tokens=4,
        values={
            "text_config": QWEN2,
            "vision_config": {**VISION, "model_type": "video_llama_3_vision"},
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": 94,
        },
        image=(16, 3 * 7 * 7),
        given={
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "image_merge_sizes": torch.tensor([2]),
        },
    ),
    lfm3_vl=VisionCase(
        num_tokens=4,
        values={
            "text_config": {
                **COMMON,
                "model_type": "lfm3",
                "head_dim": 16,
                "sliding_window": 8,
                **layers("conv", "sliding_attention", "full_attention"),
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "patch_size": 7,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "layer_types": ["conv", "full_attention"],
            },
            "projector_hidden_size": 32,
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": 94,
            "vision_start_token_id": 92,
            "vision_end_token_id": 93,
            "tie_word_embeddings": False,
        },
        image=(16, 3 * 2 * 7 * 7),
        given={"image_grid_thw": torch.tensor([[1, 4, 4]])},
    ),
)
"""By the model type of the whole."""


class ImageTower(PreTrainedModel):
    """In the place of the vision model of gemma3n, which is one of the package timm."""

    config_class = Gemma3nVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Gemma3nVisionConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.hidden_size, SIDE // 2, SIDE // 2)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.patches(pixel_values))


AutoModel.register(Gemma3nVisionConfig, ImageTower, exist_ok=True)


@cache
def vision_model(name: str) -> PreTrainedModel:
    """A seeded model of one case whose attention matters; not to be changed."""
    return vision_model_with(name)


def vision_model_with(name: str, **changes: Any) -> PreTrainedModel:
    """Such a model, with changes to the values of its case."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**VISION_CASES[name].values, **changes})
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # Gemma 3's projection of images is zero before it is trained
                parameter.normal_(std=0.05)
    return shaken(model)


def with_an_image(name: str) -> dict[str, Tensor]:
    """A prompt (1, T) with an image behind its third token."""
    case = VISION_CASES[name]
    ids = random_ids(1, 9).clamp_max(90)
    image = torch.full((1, case.num_tokens), IMAGE_TOKEN)
    ids = torch.cat([ids[:, :3], image, ids[:, 3:]], dim=1)
    pixels = torch.randn(case.image, generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    if case.types is not None:
        given[case.types] = (ids == IMAGE_TOKEN).long()
    return given | case.given
