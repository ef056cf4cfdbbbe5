"""The config of a DeepSeek checkpoint: widths, and rotations that its engines compute."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DeepseekV3Config, PreTrainedModel

from ..errors import CacheShrinkWarning, PlanError, UnsupportedModelError
from ..latents.attention.module import LatentAttention

EPSILON = 1e-6
"""Of all norms: what transformers gives the latent's norm whatever the config says, where vLLM goes
by the config."""
SAME_FREQUENCY = 1e-6
"""Relative difference, a few roundings of float32."""
LARGEST_BASE = 1e30
"""Of a rotation, which engines raise to powers in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Channels of every layer of the checkpoint.

    Attributes:
        kv_lora_rank, qk_rope_head_dim: of the latent and of the rotary key.
        places: of the model's own pairs among those of the rotary key; the others are zeros.
    """

    kv_lora_rank: int
    qk_rope_head_dim: int
    places: tuple[int, ...]

    def own(self, layer: LatentAttention) -> tuple[int, int]:
        """Those of one layer that are not padding."""
        rotary = layer.plan.qk_rope_head_dim
        return layer.plan.kv_lora_rank - rotary, rotary


def widths_of(layers: Sequence[LatentAttention], pad_to: tuple[int, int] | None) -> Widths:
    """The widest latent and rotary key, or what is to be filled up with zeros.

    Raises:
        PlanError: less than the model needs, an odd rotary key, or frequencies that the engines
            which padding is for do not compute.
    """
    rank = max(layer.plan.kv_lora_rank - layer.plan.qk_rope_head_dim for layer in layers)
    rotary = max([2, *(layer.plan.qk_rope_head_dim for layer in layers)])
    if pad_to is None:
        return _placed(layers, rank, rotary)
    if pad_to[0] < rank or pad_to[1] < rotary or pad_to[1] % 2:
        raise PlanError(
            f"pad_to={tuple(pad_to)} is below kv_lora_rank={rank} and qk_rope_head_dim={rotary} of "
            "this model, or odd; give more, or convert with a higher compression_ratio"
        )
    widths = _placed(layers, *pad_to)
    if _base(layers, widths) is None:
        raise PlanError(
            f"pad_to={tuple(pad_to)} is for engines that rotate by a base alone, and the rotary "
            f"key has the frequencies {_chosen(layers)} of the model's, of which one comes twice "
            "or is none that a base gives; convert with a smaller qk_rope_head_dim, or leave "
            "pad_to out"
        )
    return widths


def _placed(layers: Sequence[LatentAttention], rank: int, rotary: int) -> Widths:
    """With each pair where a base alone gives it its frequency, where that can be; else all from
    the first place on."""
    pairs, chosen = rotary // 2, _chosen(layers)
    places = tuple(range(len(chosen)))
    if len(set(chosen)) == len(chosen) and max(chosen, default=0):
        apart = math.gcd(*chosen)
        furthest = max(chosen) // apart
        if furthest < pairs:
            # As far apart as there is room for, which keeps the base small.
            step = (pairs - 1) // furthest
            places = tuple(one // apart * step for one in chosen)
    return Widths(kv_lora_rank=rank, qk_rope_head_dim=rotary, places=places)


def _chosen(layers: Sequence[LatentAttention]) -> tuple[int, ...]:
    """The frequency of each pair of the rotary key, among the source's."""
    return next((layer.plan.rotary_frequencies for layer in layers if _turns(layer)), ())


def _turns(layer: LatentAttention) -> bool:
    return bool(layer.plan.rotary_frequencies)


def _base(layers: Sequence[LatentAttention], widths: Widths) -> float | None:
    """Of a rotation that turns each pair at its place as the source does; None for no base."""
    given = frequencies_of(layers)
    if given is None:
        return 10000.0
    pairs, places = widths.qk_rope_head_dim // 2, torch.tensor(widths.places, dtype=torch.float64)
    furthest = int(places.argmax())
    if not widths.places[furthest]:
        return 10000.0 if len(given) == 1 and abs(float(given[0]) - 1) < SAME_FREQUENCY else None
    base = float(given[furthest]) ** (-pairs / widths.places[furthest])
    if not base < LARGEST_BASE:
        return None
    known = base ** (-places / pairs)
    return base if bool(((known - given).abs() <= SAME_FREQUENCY * known).all()) else None


def deepseek_config(
    model: PreTrainedModel, layers: Sequence[LatentAttention], widths: Widths
) -> DeepseekV3Config:
    """Of a model with dense layers, and biases where it needs them."""
    source, head = model.config, layers[0].head
    biased = any(bool(bias.any()) for layer in layers for bias in biases_of(layer))
    if biased:
        warnings.warn(
            "the checkpoint has biases (attention_bias), which transformers and SGLang add and "
            "vLLM leaves out",
            CacheShrinkWarning,
            stacklevel=4,
        )
    return DeepseekV3Config(
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        intermediate_size=source.intermediate_size,
        moe_intermediate_size=source.intermediate_size,
        num_hidden_layers=len(layers),
        num_attention_heads=head.num_attention_heads,
        num_key_value_heads=head.num_attention_heads,
        first_k_dense_replace=len(layers),
        n_routed_experts=1,
        num_experts_per_tok=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        num_mtp_layers=0,
        kv_lora_rank=widths.kv_lora_rank,
        q_lora_rank=None,
        qk_rope_head_dim=widths.qk_rope_head_dim,
        qk_nope_head_dim=head.head_dim,
        v_head_dim=head.head_dim,
        hidden_act=source.hidden_act,
        max_position_embeddings=source.max_position_embeddings,
        initializer_range=getattr(source, "initializer_range", 0.02),
        rms_norm_eps=EPSILON,
        pad_token_id=source.pad_token_id,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        # Engines differ in whether they tie DeepSeek's.
        tie_word_embeddings=False,
        rope_parameters=_rope_parameters(layers, widths, source.max_position_embeddings),
        rope_interleave=True,
        attention_bias=biased,
        attention_dropout=layers[0].dropout,
        dtype=model.dtype,
    )


def biases_of(layer: LatentAttention) -> list[Tensor]:
    """What a layer adds to its latents, to mixed values and to its output. That of keys is the same
    for all of them, so that no softmax sees it."""
    biases = (layer.kv_a_proj.bias, layer.v_b_proj.bias, getattr(layer.o_proj, "bias", None))
    return [bias for bias in biases if bias is not None]


def _rope_parameters(layers: Sequence[LatentAttention], widths: Widths, reach: int) -> dict:
    """Of rotations with the frequencies of the rotary key: by their base alone, where they are a
    geometric sequence from 1 on, as every engine computes them; else one by one, as transformers
    does (longrope with both of its lists alike)."""
    base = _base(layers, widths)
    if base is not None:
        return {"rope_type": "default", "rope_theta": base}
    given = frequencies_of(layers)
    assert given is not None
    warnings.warn(
        "the rotary key has frequencies that no base alone gives; transformers computes them "
        "(longrope), and vLLM and SGLang do not; convert with another qk_rope_head_dim for these",
        CacheShrinkWarning,
        stacklevel=5,
    )
    pairs = widths.qk_rope_head_dim // 2
    wanted = torch.ones(pairs, dtype=torch.float64)
    wanted[: len(given)] = given
    base = 10000.0
    usual = base ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    factors = (usual / wanted).tolist()
    return {
        "rope_type": "longrope",
        "rope_theta": base,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": reach,
        "long_factor": factors,
        "short_factor": factors,
    }


def frequencies_of(layers: Sequence[LatentAttention]) -> Tensor | None:
    """Angles per token of the rotary key's pairs, float64, (Dr / 2,), of all layers; None where
    none has a rotary key.

    Raises:
        UnsupportedModelError: layers whose rotary keys turn otherwise.
    """
    found: Tensor | None = None
    for layer in layers:
        rotary, chosen = layer.head.rotary, layer.plan.rotary_frequencies
        if not chosen:
            continue
        assert rotary is not None
        own = _inverse_frequencies(layer)[list(chosen)]
        if found is None:
            found = own
        elif not torch.equal(found, own):
            raise UnsupportedModelError(
                "layers rotate their keys by different frequencies, and DeepSeek's have one "
                "rotation for all; serve the model with this package"
            )
    return found


def _inverse_frequencies(layer: LatentAttention) -> Tensor:
    rotary = layer.head.rotary
    assert rotary is not None
    name = "_".join([*rotary.extra, "inv_freq"])
    buffer = getattr(rotary.rotary_emb, name, None)
    if buffer is None:
        raise UnsupportedModelError(
            f"the rotary embedding has no buffer {name}, which says how fast channels rotate; "
            "serve the model with this package"
        )
    return buffer.detach().to("cpu", torch.float64)
