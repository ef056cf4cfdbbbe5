"""The best checkpoints for how far prompts were found, against all possible ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from cacheshrink_hybrid.pool.prefixes.overlaps import BestCheckpoints, OverlapPlan


def cost(weights: Sequence[float], bins: Sequence[int]) -> float:
    return sum(
        weight * (t - max((s for s in bins if s <= t), default=0))
        for t, weight in enumerate(weights)
    )


def least_cost(weights: Sequence[float], count: int) -> float:
    places = range(1, len(weights))
    count = min(count, len(places))
    return min(cost(weights, chosen) for chosen in combinations(places, count))


@pytest.mark.parametrize(
    ("weights", "count", "bins", "mean"),
    [
        ([0, 0, 0, 0, 5, 0, 0, 0, 0, 5], 1, [9], 2.0),
        ([0, 0, 0, 0, 5, 0, 0, 0, 0, 5], 2, [4, 9], 0.0),
        ([1] * 9, 2, [3, 6], 1.0),
        ([3, 0, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], 3, [3, 6, 9], 10 / 11),
        ([0, 0, 0, 7], 4, [3], 0.0),
        ([4], 2, [], 0.0),
        ([0, 0, 0], 2, [], 0.0),
    ],
)
def test_known_ones(weights, count, bins, mean) -> None:
    best = BestCheckpoints(weights, count)
    last = len(weights) - 1
    assert best.bins(last) == bins
    assert best.cost(last) / max(1, sum(weights)) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_none_are_better(seed: int) -> None:
    """For all bins, and for those within shorter prompts."""
    random = np.random.default_rng(seed)
    weights = (random.integers(0, 4, 13) * random.random(13) ** (seed % 3)).tolist()
    for count in range(5):
        best = BestCheckpoints(weights, count)
        for last in range(len(weights)):
            within = weights[: last + 1]
            assert best.cost(last) == pytest.approx(least_cost(within, count), abs=1e-9)
            assert cost(within, best.bins(last)) == pytest.approx(best.cost(last), abs=1e-9)
            assert len(best.bins(last)) <= count


def test_thousands_of_bins() -> None:
    """Equal weights want equal distances: 1 + ... + (k - 1) per piece of k bins."""
    best = BestCheckpoints([1] * 2048, 31)
    assert best.bins(2047) == list(range(64, 2048, 64))
    assert best.cost(2047) == 32 * 63 * 64 / 2


def test_a_plan_follows_what_is_found_lately() -> None:
    plan = OverlapPlan(2, decay=0.5, replan_every=1, bin_tokens=10)
    assert plan.positions(100) == [33, 66]
    for depth in (25, 71, 25, 71):
        plan.observe(depth)
    assert plan.positions(100) == [20, 70]
    assert plan.positions(69) == [20]
    for depth in [48] * 40 + [91] * 40:
        plan.observe(depth)
    assert plan.positions(100) == [40, 90]


@pytest.mark.parametrize(
    ("replan_every", "changes"), [(10, [10, 20, 30]), (None, [OverlapPlan.FIRST_PLAN])]
)
def test_when_plans_are_made(replan_every, changes) -> None:
    plan = OverlapPlan(1, replan_every=replan_every, bin_tokens=1)
    found = []
    for number in range(1, 40 if replan_every else 300):
        before = plan.positions(1000)
        plan.observe(number)
        if plan.positions(1000) != before:
            found.append(number)
    assert found == changes


def test_copies_go_on_with_the_plan() -> None:
    plan = OverlapPlan(1, replan_every=1)
    plan.observe(130)
    for twin in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert twin.positions(200) == [128]
        twin.observe(0)
        assert plan.num_observed == 1
