"""From the key channels of a latent to keys: one dense map, or one of each head's own."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import skip_init

from ...headwise_linear import HeadwiseLinear
from ..plan import LatentPlan


def key_shares(plan: LatentPlan, num_heads: int) -> tuple[int, ...] | None:
    """Channels of one head in each run of the keys, where heads have channels of their own; None
    where every head's keys are made of all key channels."""
    return plan.key_shares(num_heads) if plan.kind.per_head else None


def make_key_projection(plan: LatentPlan, num_heads: int, head_dim: int, new: dict) -> nn.Module:
    """The projection that a layer's plan asks for, uninitialised."""
    shares = key_shares(plan, num_heads)
    if shares is not None:
        return HeadwiseLinear(num_heads, head_dim, shares, **new)
    return skip_init(nn.Linear, plan.key_rank, num_heads * head_dim, **new)
