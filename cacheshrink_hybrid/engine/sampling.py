"""How the next token of a request is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Wishes of one request.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 takes the most likely token.
        top_k: choose among so many of the most likely tokens; None for all.
        top_p: choose among the most likely tokens that have this probability together.
        seed: of the request's own random numbers, so that its text does not depend on the batch.
        stop: strings that end the text; they are not part of it.
        ignore_eos: go on after the end-of-sequence token.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        faults = []
        if self.max_tokens < 1:
            faults.append(f"max_tokens={self.max_tokens} must be at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            faults.append(f"temperature={self.temperature} must be finite and at least 0")
        if self.top_k is not None and self.top_k < 1:
            faults.append(f"top_k={self.top_k} must be at least 1, or None")
        if not 0 < self.top_p <= 1:
            faults.append(f"top_p={self.top_p} must lie above 0 and be at most 1")
        if any(not stop for stop in self.stop):
            faults.append("stop has an empty string, which every text contains")
        if faults:
            raise ConfigError("; ".join(faults))


def choose_token(logits: Tensor, params: SamplingParams, generator: torch.Generator | None) -> int:
    """The next token of logits (V,)."""
    if params.temperature == 0:
        return int(logits.argmax())
    scores = logits.float() / params.temperature
    if params.top_k is not None and params.top_k < len(scores):
        least = scores.topk(params.top_k).values[-1]
        scores = scores.masked_fill(scores < least, -math.inf)
    if params.top_p < 1:
        ordered, order = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        scores = scores.index_fill(0, order[before >= params.top_p], -math.inf)
    return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator))
