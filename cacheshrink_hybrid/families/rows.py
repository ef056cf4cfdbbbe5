"""The table of model families: where each one keeps what, as one row.

A family is added by a row here and a row in `tests/families/tiny_configs.py`. Axes on which
families differ are fields of `Family`; a row names only what differs from Llama.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from ..latents.attention.parts import Projection

Projections = Callable[[nn.Module, int, int, int], tuple[Projection, Projection, Projection]]


def split(q: str = "q_proj", k: str = "k_proj", v: str = "v_proj") -> Projections:
    """Queries, keys and values each have a layer of their own."""

    def read(attention: nn.Module, H: int, J: int, D: int):
        return tuple(Projection(name, getattr(attention, name)) for name in (q, k, v))

    return read


def fused(name: str) -> Projections:
    """One layer gives [q | k | v]."""

    def read(attention: nn.Module, H: int, J: int, D: int):
        module = getattr(attention, name)
        q, k, v = torch.arange((H + 2 * J) * D).split([H * D, J * D, J * D])
        return tuple(Projection(name, module, rows) for rows in (q, k, v))

    return read


def interleaved(name: str) -> Projections:
    """One layer gives, head by head, [q | k | v]; every query head has its own key/value head."""

    def read(attention: nn.Module, H: int, J: int, D: int):
        module = getattr(attention, name)
        q, k, v = torch.arange(3 * H * D).view(H, 3, D).unbind(1)
        return tuple(Projection(name, module, rows.flatten()) for rows in (q, k, v))

    return read


def _always(config: PretrainedConfig, layer_idx: int) -> bool:
    return True


def _never(config: PretrainedConfig, layer_idx: int) -> bool:
    return False


def _own(config: PretrainedConfig, hybrid_layer: int) -> int:
    return hybrid_layer


def _head_sizes(config: PretrainedConfig) -> tuple[int, int, int]:
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return num_heads, num_kv_heads, head_dim


def _sliding_window(config: PretrainedConfig) -> int:
    return config.sliding_window


LLAMA_PROJECTIONS = split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row.

    Attributes:
        model_type: Hugging Face `model_type`.
        attention: path of layer i's attention module, with `{}` for i.
        projections: where queries, keys and values come from.
        output: attribute of the output projection.
        norms: attributes of (q_norm, k_norm); None if there are none.
        norm_spans_heads: the norms run over all heads together instead of one head each.
        uses_rope: whether layer i rotates its keys.
        position_axes: see `SlotRotary`.
        rope_by_layer_type: the rotary embedding takes the layer's type as third argument.
        gated: the query projection also gives an output gate.
        continues_in_pieces: see `ModelSpec`.
        shares_with: for the n-th attention layer, the number of the one whose weights it uses.
        head_sizes: (H, J, D) of an attention layer.
        layer_types: kinds of all layers; None for those that the config lists.
        window: tokens that a layer with a sliding window sees.
    """

    model_type: str
    attention: str = "model.layers.{}.self_attn"
    projections: Projections = LLAMA_PROJECTIONS
    output: str = "o_proj"
    norms: tuple[str, str] | None = None
    norm_spans_heads: bool = False
    uses_rope: Callable[[PretrainedConfig, int], bool] = _always
    rope_by_layer_type: bool = False
    position_axes: int = 1
    gated: bool = False
    continues_in_pieces: bool = True
    shares_with: Callable[[PretrainedConfig, int], int] = _own
    head_sizes: Callable[[PretrainedConfig], tuple[int, int, int]] = _head_sizes
    layer_types: Callable[[PretrainedConfig], list[str]] | None = None
    window: Callable[[PretrainedConfig], int] = _sliding_window


QK_NORM = ("q_norm", "k_norm")

FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        Family(
            model_type="gpt2",
            attention="transformer.h.{}.attn",
            projections=fused("c_attn"),
            output="c_proj",
            uses_rope=_never,
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
            uses_rope=_never,
        ),
        Family(model_type="llama"),
        Family(model_type="mistral"),
        Family(model_type="mixtral"),
        Family(model_type="qwen2"),
        Family(model_type="qwen3", norms=QK_NORM),
        Family(model_type="qwen3_moe", norms=QK_NORM),
        Family(model_type="gemma2"),
        Family(model_type="gemma3_text", norms=QK_NORM, rope_by_layer_type=True),
        Family(model_type="phi3", projections=fused("qkv_proj")),
        Family(model_type="olmo2", norms=QK_NORM, norm_spans_heads=True),
        Family(model_type="smollm3", uses_rope=lambda config, i: bool(config.no_rope_layers[i])),
        Family(model_type="granite"),
        Family(model_type="gpt_oss"),
        Family(model_type="mamba", continues_in_pieces=False),
        Family(model_type="falcon_mamba", continues_in_pieces=False),
        Family(model_type="mamba2"),
        Family(
            model_type="jamba",
            uses_rope=_never,
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
            uses_rope=_never,
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
            uses_rope=_never,
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
            model_type="lfm2",
            output="out_proj",
            norms=("q_layernorm", "k_layernorm"),
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

REFUSED: dict[str, str] = {
    "cacheshrink_hybrid": "it is a converted model already; convert its source instead, or load it "
    "with load_mla_model",
    "recurrent_gemma": "it keeps its recurrent state on its modules instead of in the cache, so "
    "beam search, padding and cache reuse are wrong in the source model already",
    "kimi_linear": "its attention caches latents already, and its delta rule decays every key "
    "channel by itself, so that no basis but the given one commutes with it",
    "samba": "transformers has no model class for it, and remote code brings a cache of its own",
    "hymba": "its remote code keeps convolution and recurrent states in a cache class of its own "
    "and shares keys and values between layers",
    "minimax": "it requires a cache class of its own and is wrong with left padding and beams in "
    "the source model already",
    "gemma3": "it is a vision-language model; convert its text model (model_type 'gemma3_text')",
    "qwen3_5": "it is a vision-language model; convert its text model ('qwen3_5_text')",
}
"""Families that are known and not converted, with the reason."""


def _latent_sizes(config: PretrainedConfig) -> tuple[int, int, int]:
    """A native latent and its rotary key, as one head whose keys and values are half of it each."""
    width = config.kv_lora_rank + config.qk_rope_head_dim
    return config.num_attention_heads, 1, width // 2


def _samba_heads(config: PretrainedConfig) -> tuple[int, int, int]:
    heads = config.attn["num_heads"]
    return heads, config.attn.get("num_kv_heads") or heads, config.hidden_size // heads


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
        Family(model_type="kimi_linear", uses_rope=_never, head_sizes=_latent_sizes),
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
