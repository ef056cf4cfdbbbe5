"""Means, differences and their errors, of items that go together or do not."""

from __future__ import annotations

from statistics import stdev

import pytest

from cacheshrink_hybrid.evaluation.paired import mean_with_error, paired_difference

VALUES = [0.0, 1.0, 1.0, 3.0, 5.0]


def test_of_items_on_their_own_it_is_the_usual_error() -> None:
    mean, error = mean_with_error([[value] for value in VALUES])
    assert mean == 2.0
    assert error == pytest.approx(stdev(VALUES) / len(VALUES) ** 0.5)


def test_groups_that_repeat_one_value_count_once() -> None:
    assert mean_with_error([[value] * 3 for value in VALUES]) == pytest.approx(
        mean_with_error([[value] for value in VALUES])
    )


def test_one_group_has_no_error() -> None:
    assert mean_with_error([VALUES]) == (2.0, None)


def test_what_pairs_share_is_no_error() -> None:
    raised = [[value + 0.5] for value in VALUES]
    assert paired_difference([[value] for value in VALUES], raised) == (0.5, 0.0)
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([[1.0, 2.0]], [[1.0]])
