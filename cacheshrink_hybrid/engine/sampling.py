"""How the next token of a request is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NotSupportedError
from .sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What the model says of a sequence's next token.

    Attributes:
        logits: (V,).
        best: the most likely token.
        highest: its logit.
    """

    logits: Tensor
    best: int
    highest: float


def token_scores(logits: Tensor) -> list[TokenScores]:
    """Those of logits (B, V), with one look at the device for all of them."""
    highest, best = logits.max(dim=-1)
    return [
        TokenScores(*scores) for scores in zip(logits, best.tolist(), highest.tolist(), strict=True)
    ]


def check_scores(scores: TokenScores) -> None:
    """Raise `NotSupportedError` for logits that are not numbers."""
    if not math.isfinite(scores.highest):
        raise NotSupportedError(
            f"the model's highest logit is {scores.highest}, so there is no next token; load the "
            "model in float32 or bfloat16, and see whether its weights are sound"
        )


def choose_token(
    scores: TokenScores, params: SamplingParams, generator: torch.Generator | None
) -> int:
    """The next token: temperature first, then the most likely `top_k` of all, of these those within
    `top_p`, and of these those of at least `min_p` of the first.

    Raises:
        NotSupportedError: logits that are not numbers.
    """
    check_scores(scores)
    if generator is None:
        return scores.best
    # Divided last, and at most zero: no temperature makes them overflow.
    logits = (scores.logits.float() - scores.highest) / params.temperature
    tokens: Tensor | None = None
    if params.top_k is not None and params.top_k < len(logits):
        logits, tokens = logits.topk(params.top_k)
    if params.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= params.top_p
        outside[0] = False
        logits = logits.index_fill(0, order[outside], -math.inf)
    if params.min_p > 0:
        logits = logits.masked_fill(logits < math.log(params.min_p), -math.inf)
    number = int(torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator))
    return number if tokens is None else int(tokens[number])
