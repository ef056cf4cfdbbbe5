"""Speculative decoding by look-up: what a text said before behind the same words is tried again.

Drafts are read by the model in one step with the token before them, and those that it would have
chosen itself stay. No draft changes what is chosen: each token is drawn from the model's logits as
ever, and a draft that it equals only says that the logits behind it are there already. For drafts
of one token at a place that is the rule of speculative sampling (arXiv 2211.17192): a draft stays
with its probability, and another token has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from ..errors import ConfigError
from ..integers import count_fault
from ..pool.lifetime import WHOLE_STEP

METHOD = "ngram"
DEFAULT_NGRAM = 5
"""Tokens that have to be equal where nothing is said, as in vLLM."""
MOST_TOKENS = WHOLE_STEP - 1
"""Drafts of a step, whose rows can be taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeConfig:
    """How drafts are found; names as in vLLM.

    Attributes:
        method: `ngram`: by what followed the same tokens earlier in prompt and output.
        num_speculative_tokens: most drafts of a step.
        prompt_lookup_max, prompt_lookup_min: how many tokens have to be equal at most and at
            least; where one is None it is the other, and 5 where both are.

    Raises:
        ConfigError: values that make no sense, all listed.
    """

    num_speculative_tokens: int
    method: str = METHOD
    prompt_lookup_max: int | None = None
    prompt_lookup_min: int | None = None

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise ConfigError("; ".join(f"speculative_config: {fault}" for fault in faults))
        most, least = self.prompt_lookup_max, self.prompt_lookup_min
        for name, value, other in (
            ("prompt_lookup_max", most, least),
            ("prompt_lookup_min", least, most),
        ):
            if value is None:
                object.__setattr__(self, name, DEFAULT_NGRAM if other is None else other)

    def _faults(self) -> Iterable[str]:
        if self.method != METHOD:
            yield f"method={self.method!r} is unknown; give {METHOD!r}"
        number = self.num_speculative_tokens
        fault = count_fault("num_speculative_tokens", number, 1)
        if fault is None and number > MOST_TOKENS:
            fault = f"num_speculative_tokens={number} must be at most {MOST_TOKENS}"
        if fault is not None:
            yield fault
        lengths = []
        for name in ("prompt_lookup_max", "prompt_lookup_min"):
            value = getattr(self, name)
            fault = None if value is None else count_fault(name, value, 1)
            if fault is not None:
                yield fault
            elif value is not None:
                lengths.append(value)
        if len(lengths) == 2 and lengths[0] < lengths[1]:
            yield f"prompt_lookup_max={lengths[0]} is less than prompt_lookup_min={lengths[1]}"

    @classmethod
    def of(cls, given: Self | Mapping[str, Any]) -> Self:
        """Of a mapping, as programs and files give it.

        Raises:
            ConfigError: as above; a mapping that lacks a name or has one too many; or no mapping.
        """
        if isinstance(given, cls):
            return given
        names = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"speculative_config={given!r:.80} must map {', '.join(names)} to values"
            )
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ConfigError(
                f"speculative_config has {', '.join(map(repr, unknown))}, which is unknown; it "
                f"may have {', '.join(names)}"
            )
        if "num_speculative_tokens" not in given:
            raise ConfigError("speculative_config lacks num_speculative_tokens; give 5, say")
        return cls(**given)


class NgramProposer:
    """Drafts for one text, which grows.

    Args:
        config: how they are found.
    """

    def __init__(self, config: SpeculativeConfig) -> None:
        assert config.prompt_lookup_max is not None and config.prompt_lookup_min is not None
        self._most, self._least = config.prompt_lookup_max, config.prompt_lookup_min
        self._known = np.empty(0, np.int64)
        self._length = 0

    def __call__(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow `tokens`, which begin with those of the last call.

        They follow an earlier place where as many tokens as possible are the last ones: of such
        places the latest that `count` tokens follow, else the first.
        """
        known = self._read(tokens)
        ends, matched = np.arange(1, len(known)), 0
        while matched < self._most:
            found = ends[ends > matched]
            found = found[known[found - 1 - matched] == known[len(known) - 1 - matched]]
            if not len(found):
                break
            ends, matched = found, matched + 1
        if count < 1 or not matched or matched < self._least:
            return []
        whole = ends[ends + count <= len(known)]
        begin = int(whole[-1] if len(whole) else ends[0])
        return known[begin : begin + count].tolist()

    def _read(self, tokens: Sequence[int]) -> np.ndarray:
        """All tokens as an array, of which only the new ones are copied."""
        total = len(tokens)
        if total > len(self._known):
            larger = np.empty(2 * total, np.int64)
            larger[: self._length] = self._known[: self._length]
            self._known = larger
        self._known[self._length : total] = tokens[self._length :]
        self._length = total
        return self._known[:total]
