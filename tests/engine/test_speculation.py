"""How drafts are found, and which settings are refused."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.engine.speculation import NgramProposer, SpeculativeConfig
from cacheshrink_hybrid.errors import ConfigError


def proposer(least: int = 1, most: int = 3) -> NgramProposer:
    return NgramProposer(
        SpeculativeConfig(num_speculative_tokens=4, prompt_lookup_min=least, prompt_lookup_max=most)
    )


@pytest.mark.parametrize(
    ("tokens", "drafts"),
    [
        ([1, 2, 3, 4, 5, 6, 1, 2], [3, 4, 5]),
        ([1, 2, 9, 8, 7, 4, 2, 5, 6, 0, 1, 2], [9, 8, 7]),  # two tokens equal, not one
        ([2, 3, 4, 5, 2, 6, 7, 8, 2], [6, 7, 8]),  # the latest
        ([2, 3, 4, 5, 2, 6, 2], [3, 4, 5]),  # the latest that enough tokens follow
        ([7, 7, 7], [7]),  # what there is
        ([1, 2, 3], []),
        ([5], []),
    ],
)
def test_drafts(tokens: list[int], drafts: list[int]) -> None:
    assert proposer()(tokens, 3) == drafts


def test_fewer_equal_tokens_than_asked_for_are_nothing() -> None:
    tokens = [1, 2, 3, 9, 2, 3, 5, 2, 3]
    assert proposer(2)(tokens, 2) == [5, 2]
    assert proposer(3)(tokens, 2) == []
    assert proposer(3)([*tokens[:4], 8, *tokens[:3]], 2) == [9, 8]
    assert proposer()(tokens, 0) == []


def slowly(tokens: list[int], number: int, least: int, most: int) -> list[int]:
    """The same by comparing lists."""
    total = len(tokens)
    for size in range(min(most, total - 1), least - 1, -1):
        last = tokens[total - size :]
        ends = [end for end in range(size, total) if tokens[end - size : end] == last]
        if ends:
            whole = [end for end in ends if end + number <= total]
            begin = whole[-1] if whole else ends[0]
            return tokens[begin : begin + number]
    return []


@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 4), (2, 3), (5, 5)])
def test_a_text_that_grows(least: int, most: int) -> None:
    random = np.random.default_rng(least + most)
    tokens = random.integers(0, 3, 200).tolist()
    propose, found = proposer(least, most), 0
    for length in sorted(set(random.integers(1, 200, 60).tolist())):
        due = slowly(tokens[:length], 4, least, most)
        assert propose(tokens[:length], 4) == due
        found += bool(due)
    assert found > 15


def test_lengths_that_are_not_said() -> None:
    def lengths(**given: int) -> tuple[int | None, int | None]:
        config = SpeculativeConfig.of({"num_speculative_tokens": 2, **given})
        return config.prompt_lookup_min, config.prompt_lookup_max

    assert lengths() == (5, 5)
    assert lengths(prompt_lookup_max=3) == lengths(prompt_lookup_min=3) == (3, 3)
    assert lengths(prompt_lookup_max=3, prompt_lookup_min=2) == (2, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "eagle", "num_speculative_tokens": 2}, "method='eagle' is unknown; give"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens=0 must be a whole number >= 1"),
        ({"num_speculative_tokens": True}, "num_speculative_tokens=True must be"),
        ({"num_speculative_tokens": 64}, "must be at most 63"),
        ({"num_speculative_tokens": 2, "prompt_lookup_min": 0}, "prompt_lookup_min=0 must be"),
        ({"num_speculative_tokens": 2, "prompt_lookup_max": "4"}, "prompt_lookup_max='4' must be"),
        (
            {"num_speculative_tokens": 2, "prompt_lookup_max": 2, "prompt_lookup_min": 3},
            "prompt_lookup_max=2 is less than prompt_lookup_min=3",
        ),
        ({"num_speculative_tokens": 2, "model": "x"}, "has 'model', which is unknown; it may have"),
        ({"method": "ngram"}, "lacks num_speculative_tokens"),
        ([5], r"speculative_config=\[5\] must map"),
        (
            {"method": "mtp", "num_speculative_tokens": -1},
            "method='mtp' .*; speculative_config: num_speculative_tokens=-1",
        ),
    ],
)
def test_refusals(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpeculativeConfig.of(given)  # type: ignore[arg-type]
