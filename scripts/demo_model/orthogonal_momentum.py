"""Descent along orthogonalized momentum, as in Muon, in float32.

`torch.optim.Muon` orthogonalizes by an iteration in bfloat16, which a processor without
instructions for it does 50 times slower; an eigendecomposition of the smaller Gram matrix gives the
polar factor itself.

Reference: K. Jordan et al., Muon (2024), https://kellerjordan.github.io/posts/muon.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def polar_factor(matrix: Tensor) -> Tensor:
    """U V^T of matrix = U S V^T; directions of singular values near zero are left out."""
    if matrix.shape[0] < matrix.shape[1]:
        return polar_factor(matrix.mT).mT
    values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    floor = 1e-6 * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    inverse_roots = torch.where(values > floor, values.clamp_min(floor).rsqrt(), 0.0)
    return matrix @ (vectors * inverse_roots) @ vectors.mT


class OrthogonalMomentum(torch.optim.Optimizer):
    """Nesterov momentum of matrices, orthogonalized, with steps as large as AdamW's.

    Args:
        params: matrices.
        lr: learning rate; a step changes elements by 0.2 * lr in root mean square.
        momentum, weight_decay: decay of the momentum, and decoupled decay of the matrices.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            raise ValueError("OrthogonalMomentum takes no closure; call backward before step")
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("momentum", torch.zeros_like(gradient))
                average.lerp_(gradient, 1 - momentum)
                direction = polar_factor(gradient.lerp(average, momentum))
                parameter.mul_(1 - lr * group["weight_decay"])
                size = 0.2 * max(parameter.shape) ** 0.5
                parameter.add_(direction, alpha=-lr * size)
