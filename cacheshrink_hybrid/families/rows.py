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

from ..modules.attention_parts import Projection

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
        mixer: kind of the recurrent mixer in `linear_attention`, `conv` and `hybrid` layers.
        continues_in_pieces: see `ModelSpec`.
        shares_with: for the n-th attention layer, the number of the one whose weights it uses.
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
    mixer: str | None = None
    continues_in_pieces: bool = True
    shares_with: Callable[[PretrainedConfig, int], int] = _own


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
        Family(
            model_type="jamba",
            uses_rope=_never,
            mixer="mamba",
            continues_in_pieces=False,
        ),
        Family(model_type="bamba", mixer="mamba2"),
        Family(model_type="falcon_h1", mixer="mamba2"),
        Family(
            model_type="granitemoehybrid",
            uses_rope=lambda config, i: config.position_embedding_type == "rope",
            mixer="mamba2",
        ),
        Family(
            model_type="nemotron_h",
            attention="model.layers.{}.mixer",
            uses_rope=_never,
            mixer="mamba2",
        ),
        Family(
            model_type="zamba2",
            attention="model.layers.{}.shared_transformer.self_attn",
            uses_rope=lambda config, i: bool(config.use_mem_rope),
            mixer="mamba2",
            shares_with=lambda config, n: n % config.num_mem_blocks,
        ),
        Family(
            model_type="zamba",
            attention="model.layers.{}.shared_transf.self_attn",
            uses_rope=_never,
            mixer="mamba",
            continues_in_pieces=False,
            shares_with=lambda config, n: 0,
        ),
        Family(
            model_type="qwen3_next",
            norms=QK_NORM,
            gated=True,
            mixer="gated_delta_net",
        ),
        Family(
            model_type="qwen3_5_text",
            norms=QK_NORM,
            position_axes=3,
            gated=True,
            mixer="gated_delta_net",
        ),
        Family(
            model_type="lfm2",
            output="out_proj",
            norms=("q_layernorm", "k_layernorm"),
            mixer="short_conv",
        ),
        Family(
            model_type="olmo_hybrid",
            norms=QK_NORM,
            norm_spans_heads=True,
            uses_rope=lambda config, i: (
                getattr(config, "rope_parameters", None) is not None
                and config.rope_parameters.get("rope_theta") is not None
            ),
            mixer="gated_delta_net",
        ),
    )
}
"""Every supported family, by `model_type`."""

REFUSED: dict[str, str] = {
    "cacheshrink_hybrid": "it is a converted model already; convert its source instead, or load it "
    "with load_mla_model",
    "recurrent_gemma": "it keeps its recurrent state on its modules instead of in the cache, so "
    "beam search, padding and cache reuse are wrong in the source model already",
    "minimax": "it requires a cache class of its own and is wrong with left padding and beams in "
    "the source model already",
    "gemma3": "it is a vision-language model; convert its text model (model_type 'gemma3_text')",
    "qwen3_5": "it is a vision-language model; convert its text model ('qwen3_5_text')",
}
"""Families that are known and not converted, with the reason."""
