"""What was rounded, with the gradient of what it was before."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` forward, to the bit; the identity on `exact` backward (straight-through estimator).

    Without gradients it is `rounded` itself and costs nothing.

    Args:
        exact: before it was coded, any shape.
        rounded: the same after it was coded and decoded.

    Reference: Bengio, Leonard, Courville, arXiv 1308.3432.
    """
    if not torch.is_grad_enabled():
        return rounded
    return rounded.detach() + (exact - exact.detach())


def newest_straight_through(
    exact: Tensor, rounded: Tensor, first: int | Tensor, *, dim: int
) -> Tensor:
    """What a cache gives out, with gradients of the tokens of this call; its history is constant.

    Args:
        exact: the new tokens, T along `dim`.
        rounded: history and new tokens as they are stored, S along `dim`.
        first: where along `dim` the new ones begin; a tensor where a static cache counts on the
            device.
    """
    if not torch.is_grad_enabled():
        return rounded
    num_new, num_slots = exact.shape[dim], rounded.shape[dim]
    if isinstance(first, Tensor):
        places = torch.arange(num_new, device=rounded.device) + first
        new = straight_through(exact, rounded.index_select(dim, places))
        return rounded.detach().index_copy(dim, places, new)
    before, stored, behind = rounded.detach().split(
        [first, num_new, num_slots - first - num_new], dim=dim
    )
    return torch.cat([before, straight_through(exact, stored), behind], dim=dim)


def has_gradients(module: nn.Module, inputs: Tensor) -> bool:
    """Whether what a module computes of its inputs is to be differentiated."""
    return torch.is_grad_enabled() and (
        inputs.requires_grad or any(weight.requires_grad for weight in module.parameters())
    )
