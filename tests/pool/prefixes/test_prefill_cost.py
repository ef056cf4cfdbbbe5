"""The cost of prefill is that of what was measured."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.pool.prefixes.prefill_cost import PrefillCost


def test_a_second_per_token_before_anything_is_known() -> None:
    assert PrefillCost().seconds(10, 35) == 25


@pytest.mark.parametrize(("per_token", "per_pair"), [(2e-3, 3e-6), (2e-3, 0.0), (0.0, 3e-6)])
def test_both_rates_are_found(per_token: float, per_pair: float) -> None:
    cost = PrefillCost()

    def due(begin: int, end: int) -> float:
        pairs = sum(range(begin + 1, end + 1))
        return per_token * (end - begin) + per_pair * pairs

    for begin, end in ((0, 512), (512, 1024), (1024, 1100), (0, 40)):
        cost.observe(begin, end, due(begin, end))
    for begin, end in ((0, 7), (300, 4000), (5, 6)):
        assert cost.seconds(begin, end) == pytest.approx(due(begin, end), rel=1e-6, abs=1e-9)


def test_pieces_of_one_kind_are_taken_by_token() -> None:
    cost = PrefillCost()
    for _ in range(3):
        cost.observe(0, 100, 0.5)
    assert cost.seconds(0, 200) == pytest.approx(1.0)
    assert cost.seconds(1000, 1200) == pytest.approx(1.0)


def test_rates_are_never_negative() -> None:
    """Noise may have long contexts be faster, or single tokens cost less than nothing."""
    faster, steeper = PrefillCost(), PrefillCost()
    for begin, seconds in ((0, 2.0), (1000, 1.0)):
        faster.observe(begin, begin + 100, seconds)
    for end, seconds in ((100, 0.1), (1000, 50.0)):
        steeper.observe(0, end, seconds)
    for cost in (faster, steeper):
        assert 0 < cost.seconds(0, 10) <= cost.seconds(5000, 5010)
