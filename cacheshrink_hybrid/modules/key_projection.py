"""From the key channels of a latent to keys: one dense map, or one of each head's own.

Both give keys (..., J*D) by `forward`, and their weight row by row, so that reading code can order
rows as it needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..plan import LatentPlan


class HeadwiseLinear(nn.Module):
    """Keys of head j from its own channels: channel i * J + j of the input belongs to head j.

    Args:
        num_heads, head_dim: J and D.
        key_rank: input channels, a multiple of J.
    """

    def __init__(self, num_heads: int, head_dim: int, key_rank: int, *, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, key_rank // num_heads, **new))
        self.bias = nn.Parameter(torch.empty(num_heads * head_dim, **new))

    def forward(self, x: Tensor) -> Tensor:
        return headwise_linear(x, self.weight, self.bias)


def headwise_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Keys (..., J*D) of channels x (..., r*J) by weight (J, D, r)."""
    by_head = x.unflatten(-1, (weight.shape[2], weight.shape[0]))
    if x.ndim == 3 and x.shape[0] == 1:  # one product per head without copying the channels
        keys = torch.bmm(by_head[0].permute(2, 0, 1), weight.transpose(1, 2))
        return keys.transpose(0, 1).flatten(1)[None] + bias
    return torch.einsum("...ij,jdi->...jd", by_head, weight).flatten(-2) + bias


def make_key_projection(plan: LatentPlan, num_heads: int, head_dim: int, new: dict) -> nn.Module:
    """The projection that a layer's plan asks for, uninitialised."""
    if plan.method == "per_head":
        return HeadwiseLinear(num_heads, head_dim, plan.key_rank, **new)
    return skip_init(nn.Linear, plan.key_rank, num_heads * head_dim, **new)


def linear_in_order(projection: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`projection(x)` with rows that were put into another order."""
    if isinstance(projection, HeadwiseLinear):
        return headwise_linear(x, weight, bias)
    return nn.functional.linear(x, weight, bias)
