"""How probable the model found tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LogProbability:
    """What the model said of one token before it came.

    Attributes:
        token_id: of the token.
        value: its natural log-probability, of the softmax of the model's logits as they are.
        rank: 1 for the most likely token.
        top: token ids and log-probabilities of the most likely tokens, in descending order.
    """

    token_id: int
    value: float
    rank: int
    top: tuple[tuple[int, float], ...]


def log_probabilities(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[LogProbability]:
    """Of the tokens behind each of some positions.

    Args:
        logits: (T, V).
        tokens: T of them.
        num_top: how many of the most likely ones are told beside each.
    """
    values = logits.float().log_softmax(-1)
    own = values.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    ranks = (values > own).sum(-1) + 1
    top = values.topk(min(num_top, values.shape[-1]))
    return [
        LogProbability(token, value, rank, tuple(zip(ids, best, strict=True)))
        for token, value, rank, ids, best in zip(
            tokens,
            own[:, 0].tolist(),
            ranks.tolist(),
            top.indices.tolist(),
            top.values.tolist(),
            strict=True,
        )
    ]
