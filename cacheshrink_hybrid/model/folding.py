"""Folding a layer's encoder, bases and mean into the projections of its compressed module."""

from __future__ import annotations

import torch
from torch import Tensor

from ..latents.attention.module import LatentAttention
from ..latents.attention.parts import AttentionParts
from ..latents.fit.factors import LatentFactors


@torch.no_grad()
def write_factors(module: LatentAttention, parts: AttentionParts, factors: LatentFactors) -> None:
    """Fold encoder, bases and mean into the module's new projections.

    kv_a_proj is what `write_encoder` says; k_b_proj and v_b_proj are the bases with the means as
    biases, keys times their multiplier; kv_proj, where there is one, is W with bias b, keys times
    their multiplier too. Where keys are stored rotated, kv_a_proj is E for what kv_proj gives.
    """
    encoder, width = factors.encoder, parts.key_width
    if module.latent_costs is not None:
        assert factors.costs is not None
        module.latent_costs.copy_(factors.costs)
    multiplied = torch.ones_like(factors.mean)
    multiplied[:width] = parts.key_multiplier
    if module.kv_mean is not None:
        module.kv_mean.copy_(multiplied * factors.mean)
        module.kv_a_proj.weight.copy_(encoder / multiplied)
    else:
        write_encoder(module, parts, encoder, factors.mean)
    module.k_b_proj.weight.copy_(_key_weight(factors) * parts.key_multiplier)
    module.k_b_proj.bias.copy_(factors.mean[:width] * parts.key_multiplier)
    module.v_b_proj.weight.copy_(factors.value_up)
    module.v_b_proj.bias.copy_(factors.mean[width:])
    if module.kv_proj is not None:
        module.kv_proj.weight.copy_(multiplied[:, None] * _float64(parts.white_weight()))
        if module.kv_proj.bias is not None:
            module.kv_proj.bias.copy_(multiplied * parts.white_mean())
    for layer_idx, (_, key, value) in parts.adapters.items():
        ups = torch.block_diag(_float64(key[1].weight), _float64(value[1].weight))
        for adapters, outward in (
            (module.kv_a_adapters, encoder),
            (module.kv_adapters, torch.diag(multiplied)),
        ):
            if adapters is not None:
                down, up = adapters[str(layer_idx)]
                down.weight.copy_(torch.cat([key[0].weight, value[0].weight]))
                up.weight.copy_(outward @ ups)


@torch.no_grad()
def write_encoder(
    module: LatentAttention,
    parts: AttentionParts,
    encoder: Tensor | None = None,
    mean: Tensor | None = None,
) -> None:
    """Fold an encoder E (R, J*(D + Dv)) of [k; v] about a mean into kv_a_proj: E W with bias
    E (b - mean), where [k; v] are W x + b; or E with bias -E mean, where norms have made them.

    Args:
        encoder: the identity if None.
        mean: zeros if None.
    """
    if not parts.is_linear:
        weight, bias = torch.eye(parts.width), torch.zeros(parts.width, dtype=torch.float64)
    else:
        weight, bias = parts.white_weight(), parts.white_mean()
    if mean is not None:
        bias = bias - mean
    if encoder is not None:
        weight, bias = encoder @ _float64(weight), encoder @ bias
    module.kv_a_proj.weight.copy_(weight)
    module.kv_a_proj.bias.copy_(bias)


def _key_weight(factors: LatentFactors) -> Tensor:
    """`key_up` in the shape of the module's key projection: (J*D, Rk), or (J, D, Rk / J)."""
    if factors.key_heads is None:
        return factors.key_up
    by_head = factors.key_up.unflatten(0, (factors.num_key_heads, -1))  # (J, D, Rk)
    return torch.stack([up[:, factors.key_heads == head] for head, up in enumerate(by_head)])


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)
