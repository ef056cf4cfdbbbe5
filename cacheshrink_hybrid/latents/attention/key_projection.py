"""From the key channels of a latent to keys: one dense map, or one of each head's own.

Both give keys (..., J*D) by `forward`; `linear_in_order` does so with rows in another order.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import skip_init

from ...headwise_linear import HeadwiseLinear, headwise_linear
from ..plan import LatentPlan


def make_key_projection(plan: LatentPlan, num_heads: int, head_dim: int, new: dict) -> nn.Module:
    """The projection that a layer's plan asks for, uninitialised."""
    if plan.kind.per_head:
        return HeadwiseLinear(num_heads, head_dim, plan.key_shares(num_heads), **new)
    return skip_init(nn.Linear, plan.key_rank, num_heads * head_dim, **new)


def linear_in_order(
    x: Tensor, weight: Tensor, bias: Tensor, shares: Sequence[int] | None
) -> Tensor:
    """Keys (..., J, D) of channels x by weight (J, D, channels) and bias (J, D), whose rows may be
    in another order than the projection's.

    Args:
        shares: see `by_head`; None for a dense map.
    """
    if shares is None:
        keys = nn.functional.linear(x, weight.flatten(0, 1), bias.flatten())
    else:
        keys = headwise_linear(x, weight, bias.flatten(), shares)
    return keys.unflatten(-1, bias.shape)
