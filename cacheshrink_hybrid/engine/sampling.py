"""How the next token of a request is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, NotSupportedError
from ..integers import SEEDS, shown

GREEDY_BELOW = 1e-5
"""Temperatures that would tell logits apart only where they are equal to float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Wishes of one request.

    Attributes:
        max_tokens: most tokens to generate; None for all until the text, the model's positions or
            the pool end.
        temperature: 0, or less than 1e-5, takes the most likely token.
        top_k: choose among so many of the most likely tokens; None for all.
        top_p: choose among the most likely tokens that have this probability together.
        seed: of the request's own random numbers, so that its text does not depend on the batch.
            None draws a new one from torch's global generator for each request.
        stop: string or strings that end the text; they are not part of it.
        ignore_eos: go on after the end-of-sequence token.

    Raises:
        ConfigError: values that make no sense, all listed.
    """

    max_tokens: int | None = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        stop: Any = self.stop
        stops = (stop,) if isinstance(stop, str) else () if stop is None else stop
        readable = isinstance(stops, Sequence) and all(isinstance(text, str) for text in stops)
        faults = []
        if not (self.max_tokens is None or _whole(self.max_tokens, least=1)):
            faults.append(f"max_tokens={self.max_tokens!r} must be at least 1, or None")
        if not (_real(self.temperature) and 0 <= self.temperature < math.inf):
            faults.append(f"temperature={self.temperature!r} must be finite and at least 0")
        if not (self.top_k is None or _whole(self.top_k, least=1)):
            faults.append(f"top_k={self.top_k!r} must be at least 1, or None for all tokens")
        if not (_real(self.top_p) and 0 < self.top_p <= 1):
            faults.append(f"top_p={self.top_p!r} must lie above 0 and be at most 1")
        if not (self.seed is None or (_whole(self.seed) and int(self.seed) in SEEDS)):
            faults.append(
                f"seed={shown(self.seed)} must be a whole number >= {SEEDS.start} and at most "
                f"{SEEDS.stop - 1}, or None"
            )
        if not readable:
            faults.append(f"stop={stop!r} must be a string, or a list of strings")
        elif not all(stops):
            faults.append("stop has an empty string, which every text contains")
        if not isinstance(self.ignore_eos, bool):
            faults.append(f"ignore_eos={self.ignore_eos!r} must be True or False")
        if faults:
            raise ConfigError("; ".join(faults))
        object.__setattr__(self, "stop", tuple(stops))

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    def generator(self) -> torch.Generator | None:
        """The request's own random numbers; None where none are needed."""
        if self.greedy:
            return None
        seed = self.seed
        if seed is None:
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        return torch.Generator().manual_seed(int(seed))


def _whole(value: object, least: int | None = None) -> bool:
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    return least is None or int(value) >= least


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


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


def choose_token(
    scores: TokenScores, params: SamplingParams, generator: torch.Generator | None
) -> int:
    """The next token.

    Raises:
        NotSupportedError: logits that are not numbers.
    """
    if not math.isfinite(scores.highest):
        raise NotSupportedError(
            f"the model's highest logit is {scores.highest}, so there is no next token; load the "
            "model in float32 or bfloat16, and see whether its weights are sound"
        )
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
    number = int(torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator))
    return number if tokens is None else int(tokens[number])
