"""How far two models differ on the same items, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_with_error(groups: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """The mean over all items, and its standard error.

    Items of one group, such as questions about one text, may go together: the error is that of a
    mean of G independent groups, sqrt(G / (G - 1) * sum_g (sum of deviations in g)^2) / N. It is
    None of a single group.

    Args:
        groups: values of the items of each group, at least one item together.
    """
    count = sum(map(len, groups))
    mean = math.fsum(value for group in groups for value in group) / count
    if len(groups) == 1:
        return mean, None
    deviations = [math.fsum(value - mean for value in group) for group in groups]
    scale = len(groups) / (len(groups) - 1)
    return mean, math.sqrt(scale * math.fsum(d * d for d in deviations)) / count


def paired_difference(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> tuple[float, float | None]:
    """`mean_with_error` of what the second has more than the first, item by item."""
    return mean_with_error(
        [
            [b - a for a, b in zip(one, other, strict=True)]
            for one, other in zip(first, second, strict=True)
        ]
    )
