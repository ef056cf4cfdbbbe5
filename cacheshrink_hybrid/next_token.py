"""Losses of next-token distributions, with their gradient by formula, a block of rows at a time.

Logits are the largest tensors of a pass over text. Left to autograd, every step between them and
the loss makes and keeps a tensor of their size. Here a block of rows small enough for the CPU's
cache goes all the way to its part of the gradient, which is all that is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100
"""Label of positions that are not predicted: padding, and the first token of a text."""
BLOCK_ELEMENTS = 2**18
"""Logits of a block on a CPU: 1 MiB in float32."""
DEVICE_BLOCK_ELEMENTS = 2**25
"""The same elsewhere, where small operations wait for their launch."""


def language_model_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over predicted tokens.

    Args:
        logits: (B, T, V).
        labels: (B, T), the input ids, `IGNORED` where a token is not to be predicted.
    """
    return NextTokenLoss.apply(logits, None, labels, 1.0, 0.0)


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float = 1.0
) -> Tensor:
    """alpha temperature^2 KL(teacher || student) + (1 - alpha) cross-entropy, summed over predicted
    tokens.

    The factor keeps gradients independent of the temperature (Hinton et al., arXiv 1503.02531).

    Args:
        logits, teacher_logits: (B, T, V).
        labels: (B, T); positions whose next token is `IGNORED` do not count.
        temperature: divides the logits of the divergence, not of the cross-entropy.
    """
    return NextTokenLoss.apply(logits, teacher_logits, labels, temperature, alpha)


def mean_next_token_loss(logits: Tensor, ids: Tensor) -> float:
    """Mean cross-entropy of the next tokens of a text, in nats.

    Args:
        logits: (1, T, V).
        ids: (1, T).
    """
    return float(language_model_loss(logits.detach(), ids.to(logits.device))) / (ids.shape[1] - 1)


@torch.no_grad()
def overwrite_with_gradient(logits: Tensor, targets: Tensor) -> float:
    """The summed cross-entropy, in nats, whose gradient takes the place of the logits.

    Args:
        logits: (N, V).
        targets: (N,), the token that each row predicts, or `IGNORED`.
    """
    return float(_loss_of_rows(logits, None, targets, 1.0, 0.0, logits))


class NextTokenLoss(torch.autograd.Function):
    """alpha T^2 KL(teacher || student) at temperature T + (1 - alpha) cross-entropy, in nats, over
    predicted tokens.

    With p and q the teacher's and the student's distributions at temperature T, and q1 the
    student's at 1, the gradient in the logits is alpha T (q - p) + (1 - alpha) (q1 - one-hot).

    Args:
        logits: (B, T, V).
        teacher_logits: (B, T, V); None for the cross-entropy alone, with an alpha of 0.
        labels: (B, T), the input ids; positions whose next token is `IGNORED` do not count.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        teacher_logits: Tensor | None,
        labels: Tensor,
        temperature: float,
        alpha: float,
    ) -> Tensor:
        V = logits.shape[-1]
        rows = logits.reshape(-1, V)
        taught = None if teacher_logits is None else teacher_logits.reshape(-1, V)
        # The next token of each position; the last of a sequence has none.
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        total = _loss_of_rows(rows, taught, targets, temperature, alpha, gradient)
        ctx.gradient, ctx.shape = gradient, logits.shape
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of this loss was taken already; compute it again")
        return gradient.mul_(scale).view(ctx.shape), None, None, None, None


def _loss_of_rows(
    logits: Tensor,
    taught: Tensor | None,
    targets: Tensor,
    temperature: float,
    alpha: float,
    gradient: Tensor | None,
) -> Tensor:
    """The sum over rows (N, V), and its gradient written to `gradient` (N, V), which may be the
    logits."""
    total = logits.new_zeros((), dtype=_at_least_float32(logits.dtype))
    on_cpu = logits.device.type == "cpu"
    size = max(1, (BLOCK_ELEMENTS if on_cpu else DEVICE_BLOCK_ELEMENTS) // logits.shape[-1])
    for first in range(0, len(logits), size):
        block = slice(first, first + size)
        total += _block_loss(
            logits[block],
            None if taught is None else taught[block],
            targets[block],
            temperature,
            alpha,
            None if gradient is None else gradient[block],
        )
    return total


def _block_loss(
    logits: Tensor,
    taught: Tensor | None,
    targets: Tensor,
    temperature: float,
    alpha: float,
    gradient: Tensor | None,
) -> Tensor:
    """As `_loss_of_rows`, in one go."""
    predicted = targets != IGNORED
    index = torch.where(predicted, targets, 0)[:, None]
    # (N, V) each: logits less their largest, and probabilities, of which the largest is 1 / Z.
    scores, probabilities = _distribution(logits, 1.0)
    log_z = -probabilities.amax(-1).log()
    loss = (1 - alpha) * (log_z - scores.gather(1, index)[:, 0])
    if taught is not None:
        own, q = scores, probabilities
        if temperature != 1:
            own, q = _distribution(logits, temperature)
        theirs, p = _distribution(taught, temperature)
        # sum p (log p - log q)
        divergence = (p * theirs.sub_(own)).sum(-1) + p.amax(-1).log() - q.amax(-1).log()
        loss = loss + alpha * temperature**2 * divergence
    if gradient is not None:
        if taught is None:
            slope = probabilities
        elif temperature == 1:
            slope = probabilities.sub_(p, alpha=alpha)
        else:
            slope = probabilities.mul_(1 - alpha).add_(q.sub_(p), alpha=alpha * temperature)
        slope.scatter_add_(1, index, slope.new_full(index.shape, alpha - 1))
        slope.index_fill_(0, (~predicted).nonzero()[:, 0], 0.0)
        gradient.copy_(slope)
    return torch.where(predicted, loss, 0.0).sum()


def _distribution(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits over the temperature, less their largest, and their softmax."""
    scores = logits.to(_at_least_float32(logits.dtype))
    scores = scores - scores.amax(-1, keepdim=True)
    if temperature != 1:
        scores.div_(temperature)
    return scores, torch.softmax(scores, dim=-1)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
