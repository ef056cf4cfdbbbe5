"""Losses of activations, as sums over tokens: the caller divides by the tokens of a whole step.

All are zero for a model that does what its source does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def metric_loss(output: Tensor, target: Tensor, metric: Tensor, mask: Tensor) -> Tensor:
    """Squared error e^T M e of rebuilt keys and values, summed over tokens.

    Args:
        output, target: y = [k; v], (B, T, 2*J*D).
        metric: M, (2*J*D, 2*J*D).
        mask: (B, T), True for real tokens.
    """
    error = (output - target)[mask].float()
    return ((error @ metric) * error).sum()


def relative_loss(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error of each token over its target's squared length, summed over tokens.

    Args:
        output, target: (B, T, E).
        mask: (B, T), True for real tokens.
    """
    target = target[mask].float()
    error = (output[mask].float() - target).square().sum(-1)
    return (error / target.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)).sum()
