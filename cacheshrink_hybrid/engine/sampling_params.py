"""What one request wishes for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from ..errors import ConfigError
from ..integers import SEEDS, shown

GREEDY_BELOW = 1e-5
"""Temperatures that would tell logits apart only where they are equal to float32."""
LARGEST_CHANGE = 1e4
"""What a wish may add to a logit, or multiply it by: beside more, float32 knows no other logit."""

FORMS = ("regex", "json_schema", "grammar")
"""Fields that say which texts an answer may be; one of them at most is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Wishes of one request.

    Attributes:
        n: continuations of the prompt, which is computed once for all of them.
        max_tokens: most tokens to generate; None for all until the text, the model's positions or
            the pool end.
        min_tokens: generate so many before an end token or a stop string counts.
        temperature: 0, or less than 1e-5, takes the most likely token.
        top_k: choose among so many of the most likely tokens; None for all.
        top_p: choose among the most likely tokens that have this probability together.
        min_p: choose among tokens of at least this share of the highest probability.
        seed: of the request's own random numbers, so that its text does not depend on the batch;
            continuation i has seed + i. None draws a new one from torch's global generator for
            each request.
        repetition_penalty: what logits of tokens in prompt and output are divided by where they are
            positive, and multiplied by where not; 1 for nothing.
        presence_penalty: taken from logits of tokens in the output.
        frequency_penalty: taken from logits of tokens in the output, once for each time.
        logit_bias: what is added to the logits of tokens, by token id.
        allowed_token_ids: nothing else is generated; empty for all tokens.
        bad_words: texts whose tokens are not generated behind each other.
        regex: a regular expression that the whole text is of.
        json_schema: the text is JSON of this schema, given as an object or as JSON itself; `{}`
            for any JSON.
        grammar: the whole text is of this grammar, in the Lark of llguidance.
        stop: string or strings that end the text.
        stop_token_ids: tokens that end the text, also with `ignore_eos`.
        include_stop: the stop string, or the stop token's text, is part of the text.
        ignore_eos: go on after the end-of-sequence token.
        skip_special_tokens: the text has none of them.
        logprobs: give the log-probability of each generated token and of so many of the most likely
            ones, as the model has them before anything else here; None for none.
        prompt_logprobs: the same of the prompt's tokens, all of which are computed then.

    Raises:
        ConfigError: values that make no sense, all listed.
    """

    n: int = 1
    max_tokens: int | None = 64
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    allowed_token_ids: Sequence[int] = ()
    bad_words: str | Sequence[str] = ()
    regex: str | None = None
    json_schema: Mapping[str, Any] | str | None = None
    grammar: str | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        faults = [*self._faults_of_numbers(), *self._faults_of_collections()]
        if faults:
            raise ConfigError("; ".join(faults))
        bias: Any = self.logit_bias
        pairs = bias.items() if isinstance(bias, Mapping) else bias or ()
        own = {
            "logit_bias": tuple((int(token), float(value)) for token, value in pairs),
            "allowed_token_ids": tuple(map(int, self.allowed_token_ids or ())),
            "stop_token_ids": tuple(map(int, self.stop_token_ids or ())),
            "bad_words": _texts(self.bad_words),
            "stop": _texts(self.stop),
            "json_schema": _json(self.json_schema),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def _faults_of_numbers(self) -> Iterable[str]:
        if not _whole(self.n, least=1):
            yield f"n={shown(self.n)} must be at least 1"
        if not (self.max_tokens is None or _whole(self.max_tokens, least=1)):
            yield f"max_tokens={self.max_tokens!r} must be at least 1, or None"
        if not _whole(self.min_tokens, least=0):
            yield f"min_tokens={self.min_tokens!r} must be at least 0"
        elif _whole(self.max_tokens, least=1) and int(self.min_tokens) > int(self.max_tokens or 0):
            yield f"min_tokens={self.min_tokens!r} is more than max_tokens={self.max_tokens!r}"
        if not (_real(self.temperature) and 0 <= self.temperature < math.inf):
            yield f"temperature={self.temperature!r} must be finite and at least 0"
        if not (self.top_k is None or _whole(self.top_k, least=1)):
            yield f"top_k={self.top_k!r} must be at least 1, or None for all tokens"
        if not (_real(self.top_p) and 0 < self.top_p <= 1):
            yield f"top_p={self.top_p!r} must lie above 0 and be at most 1"
        if not (_real(self.min_p) and 0 <= self.min_p <= 1):
            yield f"min_p={self.min_p!r} must be at least 0 and at most 1"
        if not (self.seed is None or (_whole(self.seed) and int(self.seed) in SEEDS)):
            yield (
                f"seed={shown(self.seed)} must be a whole number >= {SEEDS.start} and at most "
                f"{SEEDS.stop - 1}, or None"
            )
        factor = self.repetition_penalty
        if not (_real(factor) and 1 / LARGEST_CHANGE <= factor <= LARGEST_CHANGE):
            yield (
                f"repetition_penalty={factor!r} must be at least {1 / LARGEST_CHANGE:g} and at "
                f"most {LARGEST_CHANGE:g}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not (_real(value) and abs(value) <= LARGEST_CHANGE):
                yield f"{name}={value!r} must be a number of at most {LARGEST_CHANGE:g} either way"
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if not (value is None or _whole(value, least=0)):
                yield f"{name}={value!r} must be at least 0, or None for none"
        for name in ("ignore_eos", "include_stop", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name}={getattr(self, name)!r} must be True or False"

    def _faults_of_collections(self) -> Iterable[str]:
        for name in ("stop", "bad_words"):
            value = getattr(self, name)
            texts = _texts(value)
            if texts is None:
                yield f"{name}={value!r} must be a string, or a list of strings"
            elif not all(texts):
                yield f"{name} has an empty string, which every text contains"
            elif not all(map(_is_unicode, texts)):
                yield f"{name} has half a surrogate pair, which no text of a tokenizer has"
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)):
                yield f"{name}={value!r:.80} must be a string"
        if _json(self.json_schema) is None and self.json_schema is not None:
            yield f"json_schema={self.json_schema!r:.80} must be an object that JSON can hold"
        forms = [name for name in FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            yield f"{' and '.join(forms)} exclude each other; give one"
        for name in ("stop_token_ids", "allowed_token_ids"):
            value = getattr(self, name)
            if not (value is None or (_listed(value) and all(map(_whole, value)))):
                yield f"{name}={value!r:.80} must be a list of token ids"
        bias: Any = self.logit_bias
        pairs = list(bias.items()) if isinstance(bias, Mapping) else bias
        readable = pairs is None or (_listed(pairs) and all(map(_is_bias, pairs)))
        if not readable:
            yield (
                f"logit_bias={bias!r:.80} must map token ids to numbers of at most "
                f"{LARGEST_CHANGE:g} either way"
            )

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def named_tokens(self) -> frozenset[int]:
        """Token ids that these wishes name."""
        biased: Any = self.logit_bias
        named = (*(token for token, _ in biased), *self.allowed_token_ids, *self.stop_token_ids)
        return frozenset(named)

    def generator(self, index: int = 0) -> torch.Generator | None:
        """Own random numbers of continuation `index`; None where none are needed."""
        if self.greedy:
            return None
        seed = self.seed
        if seed is None:
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        number = int(seed) + index
        return torch.Generator().manual_seed(number - (2**64 if number >= SEEDS.stop else 0))


def _texts(given: Any) -> tuple[str, ...] | None:
    """Strings as a tuple; None for something else."""
    if isinstance(given, str):
        return (given,)
    if given is None:
        return ()
    readable = _listed(given) and all(isinstance(text, str) for text in given)
    return tuple(given) if readable else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json(given: Any) -> str | None:
    """An object as JSON, whether it was given so or not; None for something else."""
    try:
        read = json.loads(given) if isinstance(given, str) else given
        return json.dumps(read) if isinstance(read, Mapping) else None
    except (TypeError, ValueError, RecursionError):
        return None


def _listed(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_bias(pair: Any) -> bool:
    if not (_listed(pair) and len(pair) == 2):
        return False
    token, value = pair
    return _whole(token) and _real(value) and abs(value) <= LARGEST_CHANGE


def _whole(value: object, least: int | None = None) -> bool:
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    return least is None or int(value) >= least


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
