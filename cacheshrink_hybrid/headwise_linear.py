"""A linear layer that gives each head's outputs from channels of the head's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class HeadwiseLinear(nn.Module):
    """Keys of head j from its own channels.

    Args:
        num_heads, head_dim: J and D.
        shares: channels of one head in each run of the input, see `by_head`.
    """

    def __init__(
        self, num_heads: int, head_dim: int, shares: Sequence[int], *, device=None, dtype=None
    ):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.shares = tuple(shares)
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, sum(shares), **new))
        self.bias = nn.Parameter(torch.empty(num_heads * head_dim, **new))

    def forward(self, x: Tensor) -> Tensor:
        return headwise_linear(x, self.weight, self.bias, self.shares)


def headwise_linear(x: Tensor, weight: Tensor, bias: Tensor, shares: Sequence[int]) -> Tensor:
    """Keys (..., J*D) of channels x (..., J*r), in runs, by weight (J, D, r)."""
    own = by_head(x, weight.shape[0], shares)
    if x.ndim == 3 and x.shape[0] == 1:  # one product per head without copying the channels
        keys = torch.bmm(own[0].transpose(0, 1), weight.transpose(1, 2))
        return keys.transpose(0, 1).flatten(1)[None] + bias
    return torch.einsum("...ji,jdi->...jd", own, weight).flatten(-2) + bias


def by_head(x: Tensor, num_heads: int, shares: Sequence[int]) -> Tensor:
    """Channels (..., J, r) of each head, of channels (..., J*r) in runs, each of which holds its
    share of head 0, then of head 1, and so on."""
    runs = x.split([num_heads * share for share in shares], dim=-1)
    parts = [run.unflatten(-1, (num_heads, -1)) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def in_runs(own: Tensor, shares: Sequence[int]) -> Tensor:
    """The inverse of `by_head`."""
    return torch.cat([part.flatten(-2) for part in own.split(list(shares), dim=-1)], dim=-1)
