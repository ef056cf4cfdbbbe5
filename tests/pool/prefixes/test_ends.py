"""The checkpoint before what is each prompt's own."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.pool.prefixes.ends import MEMORY, EndPlan


def best_by_force(ends: list[int], num_tokens: int) -> float:
    """Most tokens that one checkpoint saves, over prompts with these own ends."""
    places = range(1, num_tokens)
    return max(sum(place <= num_tokens - end for end in ends) * place for place in places)


@pytest.mark.parametrize("seed", range(5))
def test_the_place_saves_most(seed: int) -> None:
    random = np.random.default_rng(seed)
    ends = [int(x) for x in random.integers(1, 300, 30)]
    plan = EndPlan()
    for end in ends:
        plan.observe(1000 - end, 1000)
    for num_tokens in (301, 800, 5000):
        (place,) = plan.positions(num_tokens)
        saved = sum(place <= num_tokens - end for end in ends) * place
        assert saved == best_by_force(ends, num_tokens)


def test_what_says_nothing() -> None:
    plan = EndPlan()
    assert plan.positions(100) == []
    plan.observe(0, 50)
    assert plan.positions(100) == [] and not plan.is_known()
    plan.observe(60, 100)
    assert plan.positions(40) == [] and plan.is_known()
    assert plan.positions(41) == [1]


def test_what_was_long_ago_counts_no_longer() -> None:
    plan = EndPlan()
    for end in [10] * MEMORY + [90] * MEMORY:
        plan.observe(100 - end, 100)
    assert plan.positions(1000) == [910]
