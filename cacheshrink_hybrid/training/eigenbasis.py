"""Adam in the eigenbasis of a matrix's gradients (SOAP; Vyas et al., arXiv 2409.11321).

Adam scales every element of a gradient on its own, which is best where elements are independent.
Those of a weight matrix are not: its inputs and its outputs are correlated among each other. In the
eigenbases of the moving averages of G G^T and G^T G they nearly are, so Adam's second moment is
kept there. A side longer than `LONGEST_SIDE`, whose decomposition would cost more than the step, is
left as it is; with both sides left this is Adam.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LONGEST_SIDE = 1024
COVARIANCE_DECAY = 0.95
REFRESH_STEPS = 10
"""Steps between decompositions; in the first ten steps there are more."""
EARLY_STEPS = (1, 2, 3, 5)
FLOOR = 3e-3
"""Smallest divisor of a direction, as a share of the gradient's root mean square: directions in
which there is no gradient but rounding stay where they are."""

State = dict[str, Any]


def has_eigenbasis(shape: torch.Size) -> bool:
    """Whether a parameter of this shape has a side to find a basis for."""
    return len(shape) == 2 and min(shape) > 1 and min(shape) <= LONGEST_SIDE


def basis_elements(shape: torch.Size) -> int:
    """Elements of the averages and the bases of a matrix of this shape."""
    return sum(2 * side**2 for side in shape if side <= LONGEST_SIDE)


def eigenbasis_direction(state: State, gradient: Tensor, betas: tuple[float, float]) -> Tensor:
    """What Adam would subtract at a learning rate of 1, (n, m), for the next gradient (n, m).

    Args:
        state: of this parameter, empty at first; brought up to date.
        betas: decays of the first and of the second moment.
    """
    if not state:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(gradient)
        state["exp_avg_sq"] = torch.zeros_like(gradient)
        for side, length in zip(("left", "right"), gradient.shape, strict=True):
            if length <= LONGEST_SIDE:
                state[side] = gradient.new_zeros(length, length)
    state["step"] += 1
    step = state["step"]
    for side, factor in (("left", gradient), ("right", gradient.mT)):
        if side in state:
            state[side].lerp_(factor @ factor.mT, 1 - COVARIANCE_DECAY)
            if step % REFRESH_STEPS == 0 or step in EARLY_STEPS:
                state[f"{side}_basis"] = torch.linalg.eigh(state[side]).eigenvectors
    state["exp_avg"].lerp_(gradient, 1 - betas[0])
    turned = _into_basis(state, gradient)
    state["exp_avg_sq"].lerp_(turned.square(), 1 - betas[1])
    size = (state["exp_avg_sq"] / (1 - betas[1] ** step)).sqrt()
    floor = FLOOR * size.square().mean().sqrt() + torch.finfo(gradient.dtype).tiny
    mean = _into_basis(state, state["exp_avg"]) / (1 - betas[0] ** step)
    return _out_of_basis(state, mean / (size + floor))


def _into_basis(state: State, x: Tensor) -> Tensor:
    """Q_left^T x Q_right."""
    x = state["left_basis"].mT @ x if "left" in state else x
    return x @ state["right_basis"] if "right" in state else x


def _out_of_basis(state: State, x: Tensor) -> Tensor:
    """Q_left x Q_right^T."""
    x = state["left_basis"] @ x if "left" in state else x
    return x @ state["right_basis"].mT if "right" in state else x
