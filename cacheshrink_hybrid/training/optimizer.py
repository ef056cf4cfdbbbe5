"""One optimizer for both kinds of parameters: RiemannianAdam on the manifold, AdamW beside it, for
matrices in the eigenbasis of their gradients (`eigenbasis`).

Step sizes are scale-aware unless given: a tensor moves by a share of its own size. On the Stiefel
manifold the size of a factor with r columns is sqrt(r), so the share is the mean angle, in radians,
that a column turns in one step. The share falls with the model's width E as 1 / E: the steps of all
inputs of a neuron add up in its output (as in Tensor Programs V, arXiv 2203.03466).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import geoopt
import torch
from torch import nn

from .eigenbasis import basis_elements, eigenbasis_direction, has_eigenbasis

REFERENCE_WIDTH = 64
EUCLIDEAN_STEP = 8e-3
"""AdamW's step at the reference width, as a share of a tensor's root mean square."""
RIEMANNIAN_STEP = 8e-3
"""RiemannianAdam's step at the reference width, radians per column."""


@dataclass(frozen=True, slots=True)
class NamedParameter:
    """A parameter to train.

    Attributes:
        name: in the model.
        size: root mean square of what is moved; steps are shares of it.
    """

    name: str
    parameter: nn.Parameter
    size: float

    @property
    def on_manifold(self) -> bool:
        return isinstance(self.parameter, geoopt.ManifoldParameter)


class RiemannianAdamW(geoopt.optim.RiemannianAdam):
    """RiemannianAdam whose weight decay is decoupled, and for Euclidean parameters only.

    On those it is AdamW (Loshchilov and Hutter, arXiv 1711.05101); in groups with `eigenbasis` set,
    in the eigenbasis of the gradients.
    """

    @torch.no_grad()
    def step(self, closure=None):
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            if decay:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.mul_(1 - group["lr"] * decay)
            group["weight_decay"] = 0.0
        turned = [
            (group, parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if group.get("eigenbasis", False) and parameter.grad is not None
        ]
        for group, parameter, gradient in turned:
            direction = eigenbasis_direction(self.state[parameter], gradient, group["betas"])
            parameter.sub_(direction, alpha=group["lr"])
            parameter.grad = None  # done: the base class passes it by
        try:
            return super().step(closure)
        finally:
            for _, parameter, gradient in turned:
                parameter.grad = gradient
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of torch, which makes tensors of the step counts; in single precision these would
        change the bias corrections in the last digit, and the resumed run with them."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["step"] = int(state["step"])


def turns_gradients(parameter: nn.Parameter) -> bool:
    """Whether steps of a parameter are scaled in the eigenbasis of its gradients."""
    on_manifold = isinstance(parameter, geoopt.ManifoldParameter)
    return not on_manifold and has_eigenbasis(parameter.shape)


def state_elements(parameter: nn.Parameter) -> int:
    """Numbers that the optimizer keeps for a parameter: two moments, and bases."""
    bases = basis_elements(parameter.shape) if turns_gradients(parameter) else 0
    return 2 * parameter.numel() + bases


def make_optimizer(
    parameters: list[NamedParameter],
    *,
    width: int,
    euclidean_lr: float | None,
    riemannian_lr: float | None,
    learning_rate_scale: float,
    weight_decay: float,
) -> RiemannianAdamW:
    """One group per parameter, named after it.

    Args:
        width: E, of the model.
        euclidean_lr, riemannian_lr: learning rates of the two optimizers, the same for all tensors;
            None for `EUCLIDEAN_STEP` and `RIEMANNIAN_STEP` times each tensor's size.
        learning_rate_scale: multiplies all of them.
        weight_decay: of the Euclidean weights that are matrices.
    """
    groups = []
    share = REFERENCE_WIDTH / width
    for item in parameters:
        if item.on_manifold:
            size = float(item.parameter.shape[-1]) ** 0.5
            rate = share * RIEMANNIAN_STEP * size if riemannian_lr is None else riemannian_lr
        else:
            rate = share * EUCLIDEAN_STEP * item.size if euclidean_lr is None else euclidean_lr
        decays = item.parameter.ndim > 1 and not item.on_manifold
        groups.append(
            {
                "params": [item.parameter],
                "name": item.name,
                "lr": rate * learning_rate_scale,
                "weight_decay": weight_decay if decays else 0.0,
                "eigenbasis": turns_gradients(item.parameter),
            }
        )
    return RiemannianAdamW(groups, lr=0.0)
