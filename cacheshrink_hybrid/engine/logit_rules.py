"""What a request's wishes make of the model's logits before a token is drawn.

Each rule changes float32 logits (V,) in place, knowing the tokens so far. The order is that of
`rules_of`: first what is forbidden, then what is added and taken.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from .sampling import TokenScores
from .sampling_params import SamplingParams


class LogitRule(Protocol):
    """One wish of one request."""

    def apply(self, logits: Tensor, tokens: Sequence[int]) -> None:
        """Change logits (V,) in place.

        Args:
            tokens: of prompt and output so far.
        """


class AllowedTokens:
    """Nothing but these tokens."""

    def __init__(self, allowed: Sequence[int]) -> None:
        self._allowed = torch.tensor(sorted(set(allowed)))

    def apply(self, logits: Tensor, tokens: Sequence[int]) -> None:
        allowed = self._allowed.to(logits.device)
        kept = logits[allowed]
        logits.fill_(-math.inf)
        logits[allowed] = kept


class BadWords:
    """None of these runs of tokens: the last of each is forbidden behind the others."""

    def __init__(self, runs: Sequence[Sequence[int]]) -> None:
        self._last: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for run in runs:
            self._last[tuple(run[:-1])].append(run[-1])

    def apply(self, logits: Tensor, tokens: Sequence[int]) -> None:
        for begin, last in self._last.items():
            if tuple(tokens[len(tokens) - len(begin) :]) == begin:
                logits[last] = -math.inf


class NoEarlyEnd:
    """No end token before the output has so many tokens.

    Args:
        ends: tokens that end the text.
        length: of prompt and least output.
    """

    def __init__(self, ends: Sequence[int], length: int) -> None:
        self._ends, self._length = list(ends), length

    def apply(self, logits: Tensor, tokens: Sequence[int]) -> None:
        if len(tokens) < self._length:
            logits[self._ends] = -math.inf


class LogitBias:
    """Numbers that are added to the logits of some tokens."""

    def __init__(self, bias: Sequence[tuple[int, float]]) -> None:
        self._tokens = torch.tensor([token for token, _ in bias])
        self._values = torch.tensor([value for _, value in bias])

    def apply(self, logits: Tensor, tokens: Sequence[int]) -> None:
        where, values = self._tokens.to(logits.device), self._values.to(logits.device)
        logits.index_add_(0, where, values)


class Penalties:
    """Less for tokens that came before.

    With c the number of times that a token is in the output, its logit x becomes

        x / r  or  x * r      for x > 0 or not, if it is in prompt or output
        x - p [c > 0] - f c   after that

    r as in CTRL (arXiv 1909.05858), p and f as in OpenAI's API.

    Args:
        num_prompt: tokens of the prompt.
    """

    def __init__(self, params: SamplingParams, num_prompt: int) -> None:
        self._params = params
        self._num_prompt = num_prompt
        self._num_counted = 0
        self._seen = self._counts = torch.empty(0)
        """Whether a token came at all, and how often in the output, (V,) each."""

    def apply(self, logits: Tensor, tokens: Sequence[int]) -> None:
        self._count(logits, tokens)
        params = self._params
        if params.repetition_penalty != 1:
            factor = params.repetition_penalty
            changed = torch.where(logits > 0, logits / factor, logits * factor)
            torch.where(self._seen, changed, logits, out=logits)
        logits -= params.presence_penalty * (self._counts > 0)
        logits -= params.frequency_penalty * self._counts

    def _count(self, logits: Tensor, tokens: Sequence[int]) -> None:
        if not self._num_counted:
            self._counts = torch.zeros_like(logits)
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
        new = torch.tensor(tokens[self._num_counted :], dtype=torch.long, device=logits.device)
        self._seen[new] = True
        generated = new[max(0, self._num_prompt - self._num_counted) :]
        self._counts.index_add_(0, generated, logits.new_ones(len(generated)))
        self._num_counted = len(tokens)


def rules_of(
    params: SamplingParams,
    *,
    num_prompt: int,
    ends: Sequence[int],
    bad_words: Sequence[Sequence[int]],
) -> list[LogitRule]:
    """The rules that a request needs, in the order in which they are applied.

    Args:
        num_prompt: tokens of the prompt.
        ends: tokens that end the text.
        bad_words: their tokens.
    """
    rules: list[LogitRule] = []
    bias: Any = params.logit_bias
    if params.allowed_token_ids:
        rules.append(AllowedTokens(params.allowed_token_ids))
    if bad_words:
        rules.append(BadWords(bad_words))
    if params.min_tokens and ends:
        rules.append(NoEarlyEnd(ends, num_prompt + params.min_tokens))
    if bias:
        rules.append(LogitBias(bias))
    if (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    ):
        rules.append(Penalties(params, num_prompt))
    return rules


def ruled_scores(
    scores: TokenScores, rules: Sequence[LogitRule], tokens: Sequence[int]
) -> TokenScores:
    """Scores after these rules; the same where there are none.

    Raises:
        ConfigError: no token is left.
    """
    if not rules:
        return scores
    logits = scores.logits.to(torch.float32, copy=True)
    for rule in rules:
        rule.apply(logits, tokens)
    highest, best = (value.item() for value in logits.max(dim=-1))
    if highest == -math.inf:
        raise ConfigError(
            "allowed_token_ids, bad_words, min_tokens and the text's form together forbid every "
            "next token; allow more, or let the text end sooner"
        )
    return TokenScores(logits, int(best), float(highest))
