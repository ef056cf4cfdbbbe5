"""The weights of a DeepSeek checkpoint, multiplied out from those of a converted model.

Symbols beyond those of the package: a, what the stream between layers is scaled by, and d, what the
latent is before its norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..latents.attention.module import LatentAttention
from .deepseek_config import EPSILON, Widths, biases_of

LATENT_SCALE = 2.0**-14
"""d over the root of the norm's epsilon. Latents have unit variance, so that their mean square adds
some 1e-9 of itself to the epsilon, and the norm divides by the root of that: a constant."""


def deepseek_weights(
    model: PreTrainedModel, layers: Sequence[LatentAttention], widths: Widths
) -> dict[str, Tensor]:
    """By name, in the model's dtype.

    Raises:
        UnsupportedModelError: float16, which has no numbers as small as the latent before its norm.
    """
    if model.dtype == torch.float16:
        raise UnsupportedModelError(
            "float16 has no numbers as small as the latent before DeepSeek's norm; load the model "
            "in bfloat16 or float32 first"
        )
    base, stream = model.base_model, math.sqrt(EPSILON / model.config.rms_norm_eps)
    found = {
        "model.embed_tokens.weight": stream * _wide(model.get_input_embeddings().weight),
        "model.norm.weight": base.norm.weight,
        "lm_head.weight": model.get_output_embeddings().weight,
    }
    biased = any(bool(bias.any()) for layer in layers for bias in biases_of(layer))
    for index, (attention, layer) in enumerate(zip(layers, base.layers, strict=True)):
        own = {
            **_attention(attention, widths, stream, biased),
            **_mlp(layer.mlp, stream),
            "input_layernorm.weight": layer.input_layernorm.weight,
            "post_attention_layernorm.weight": layer.post_attention_layernorm.weight,
        }
        found |= {f"model.layers.{index}.{name}": weight for name, weight in own.items()}
    return {
        name: weight.detach().to(model.device, model.dtype).clone().contiguous()
        for name, weight in found.items()
    }


def _wide(weight: Tensor) -> Tensor:
    return weight.detach().double()


def _mlp(mlp: nn.Module, stream: float) -> dict[str, Tensor]:
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj.weight.chunk(2)
    else:
        gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
    return {
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": stream * _wide(mlp.down_proj.weight),
    }


def _attention(
    attention: LatentAttention, widths: Widths, stream: float, biased: bool
) -> dict[str, Tensor]:
    head, plan = attention.head, attention.plan
    H, D, group = head.num_attention_heads, head.head_dim, attention.num_key_value_groups
    rotary = plan.qk_rope_head_dim
    order = torch.arange(rotary).view(2, -1).T.flatten()  # pairs lie side by side
    rank = plan.kv_lora_rank - rotary
    to_width = nn.functional.pad
    query = _wide(attention.q_proj.weight).unflatten(0, (H, D))
    key_up, value_up = (
        _wide(projection.weight).unflatten(0, (-1, D)).repeat_interleave(group, dim=0)
        for projection in (attention.k_b_proj, attention.v_b_proj)
    )  # (H, D, channels)
    longer = head.scale * math.sqrt(D + widths.qk_rope_head_dim)
    turning = torch.einsum("hdr,hde->hre", key_up[..., order], query) * _length(attention) ** 2
    queries = torch.cat([query, _placed(turning, widths)], dim=1)

    small = LATENT_SCALE * math.sqrt(EPSILON)
    down, offset = _wide(attention.kv_a_proj.weight), attention.kv_a_proj.bias
    offset = down.new_zeros(len(down)) if offset is None else _wide(offset)
    whole = torch.cat([down, offset[:, None]], dim=1)  # (Dr + R, E + 1)
    latent = to_width(small * whole[rotary:], (0, 0, 0, widths.kv_lora_rank - rank))
    whole = torch.cat([latent, _placed(whole[:rotary][order], widths)])
    ups = torch.cat([_of_latent(key_up, rotary, rank), _of_values(value_up, rank)], dim=1)

    output = _wide(attention.o_proj.weight)
    means = _wide(attention.v_b_proj.bias).view(-1, D).repeat_interleave(group, dim=0)
    added = output @ means.flatten()
    if attention.o_proj.bias is not None:
        added = added + _wide(attention.o_proj.bias)
    found = {
        "q_proj.weight": longer * queries.flatten(0, 1),
        "kv_a_proj_with_mqa.weight": whole[:, :-1],
        "kv_a_layernorm.weight": torch.full((widths.kv_lora_rank,), 1 / LATENT_SCALE),
        "kv_b_proj.weight": to_width(ups, (0, widths.kv_lora_rank - rank)).flatten(0, 1),
        "o_proj.weight": stream * output,
    }
    if biased:
        found |= {"kv_a_proj_with_mqa.bias": whole[:, -1], "o_proj.bias": stream * added}
    return {f"self_attn.{name}": weight for name, weight in found.items()}


def _placed(rows: Tensor, widths: Widths) -> Tensor:
    """Rows (..., Dr, E) of a layer's rotary key, two of each pair, at the places of their pairs; of
    a layer without one there are none."""
    found = rows.new_zeros(*rows.shape[:-2], widths.qk_rope_head_dim // 2, 2, rows.shape[-1])
    pairs = rows.unflatten(-2, (-1, 2))
    found[..., list(widths.places[: pairs.shape[-3]]), :, :] = pairs
    return found.flatten(-3, -2)


def _of_latent(key_up: Tensor, rotary: int, rank: int) -> Tensor:
    """What makes keys without rotation of the latent's channels, (H, D, R)."""
    own = key_up[..., rotary:]
    return nn.functional.pad(own, (0, rank - own.shape[-1]))


def _of_values(value_up: Tensor, rank: int) -> Tensor:
    """The same of values, which are made of the last channels."""
    return nn.functional.pad(value_up, (rank - value_up.shape[-1], 0))


def _length(attention: LatentAttention) -> float:
    """What a model multiplies its cos and sin by."""
    rotary = attention.head.rotary
    if rotary is None or not attention.plan.rotary_frequencies:
        return 1.0
    cos, sin = rotary.angles(1, torch.empty(0, device=attention.kv_a_proj.weight.device))
    return float(torch.hypot(cos, sin).flatten()[0])
