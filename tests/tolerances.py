"""The one table of tolerances, and the comparisons that use it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOGITS = {torch.float32: 2e-4}
"""Largest difference of logits whose mean size is at most 1; it grows with them beyond."""

SAME_COMPUTATION = 1e-5
"""Largest difference between two orders of the same float32 computation at scale 1."""

FLOAT64 = 1e-10
"""Largest relative difference between two float64 results."""

BFLOAT16_NOISE = 2.0
"""Root mean square error of a bfloat16 model, in units of what its source has in bfloat16."""


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the mean size of `expected` where that exceeds 1."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.abs().mean()))
    difference = float((actual.double() - expected.double()).abs().max())
    assert not math.isnan(difference)
    return difference / scale


def assert_same_logits(actual: Tensor, expected: Tensor) -> None:
    _assert_below(largest_difference(actual, expected), LOGITS[expected.dtype])


def assert_same_computation(actual: Tensor, expected: Tensor) -> None:
    _assert_below(largest_difference(actual, expected), SAME_COMPUTATION)


def _assert_below(difference: float, limit: float) -> None:
    assert difference < limit, f"differs by {difference:.3g}, where less than {limit:.3g} is due"


def assert_within_bfloat16_noise(actual: Tensor, source: Tensor, exact: Tensor) -> None:
    """`actual` and `source` are bfloat16 results, `exact` is the source's in float32."""

    def error(x: Tensor) -> float:
        return float((x.float() - exact).square().mean().sqrt())

    assert error(source) > 0
    assert error(actual) < BFLOAT16_NOISE * error(source)
