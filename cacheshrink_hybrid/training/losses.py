"""Losses of fine-tuning, as sums over tokens: the caller divides by the tokens of a whole step.

All are zero for a model that does what its source does, except the language-model loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

IGNORED = -100
"""Label of positions that are not predicted: padding, and the first token of a text."""


def language_model_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over predicted tokens.

    Args:
        logits: (B, T, V).
        labels: (B, T), the input ids, `IGNORED` where a token is not to be predicted.
    """
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """temperature^2 KL(teacher || student) at a temperature, summed over predicted tokens.

    The factor keeps gradients independent of the temperature (Hinton et al., arXiv 1503.02531).

    Args:
        logits, teacher_logits: (B, T, V).
        labels: (B, T); positions whose next token is `IGNORED` do not count.
    """
    counted = labels[:, 1:] != IGNORED
    student = torch.log_softmax(logits[:, :-1][counted].float() / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_logits[:, :-1][counted].float() / temperature, dim=-1)
    return temperature**2 * nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)


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
