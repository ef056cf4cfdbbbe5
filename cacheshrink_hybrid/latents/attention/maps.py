"""From latents to keys and to values as matrices, head by head, whatever modules compute them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...headwise_linear import in_runs
from ...linear_map import images, is_linear, is_plain

if TYPE_CHECKING:
    from .module import LatentAttention

Units = Callable[["LatentAttention", Tensor], Tensor]


def key_map(module: LatentAttention, like: Tensor) -> tuple[Tensor, Tensor]:
    """What `k_b_proj` computes, as a weight (J, D, Rk) and a bias (J, D); where heads have channels
    of their own, the weight is (J, D, Rk / J).

    Args:
        like: a tensor of the latents' type and device.
    """
    return _by_head(module, module.k_b_proj, _key_units, like)


def value_map(module: LatentAttention, like: Tensor) -> tuple[Tensor, Tensor]:
    """What `v_b_proj` computes, as a weight (J, D, Rv) and a bias (J, D)."""
    return _by_head(module, module.v_b_proj, _value_units, like)


def unlike_matrices(module: LatentAttention, like: Tensor) -> str | None:
    """Name and class of a projection that `key_map` or `value_map` cannot describe, or None."""
    for name, units in (("k_b_proj", _key_units), ("v_b_proj", _value_units)):
        projection = getattr(module, name)
        if not is_plain(projection) and not is_linear(projection, units(module, like)):
            return f"{name} (a {type(projection).__name__})"
    return None


def _by_head(
    module: LatentAttention, projection: nn.Module, units: Units, like: Tensor
) -> tuple[Tensor, Tensor]:
    if is_plain(projection):
        weight, bias = projection.weight, projection.bias
    else:
        columns, bias = images(projection, units(module, like))
        weight = columns.T
    heads = module.num_key_value_heads, module.head_dim
    return weight.reshape(*heads, -1), bias.reshape(heads)


def _key_units(module: LatentAttention, like: Tensor) -> Tensor:
    """Inputs of `k_b_proj` whose images are the columns of its weight."""
    if module.plan.method != "per_head":
        return torch.eye(module.plan.key_rank, dtype=like.dtype, device=like.device)
    heads = module.num_key_value_heads
    shares = module.plan.key_shares(heads)
    own = torch.eye(sum(shares), dtype=like.dtype, device=like.device)
    return in_runs(own[:, None].expand(-1, heads, -1), shares)


def _value_units(module: LatentAttention, like: Tensor) -> Tensor:
    return torch.eye(module.plan.value_rank, dtype=like.dtype, device=like.device)
