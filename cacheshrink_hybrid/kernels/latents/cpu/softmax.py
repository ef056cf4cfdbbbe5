"""The online softmax, compiled, in powers of two."""

import numpy as np

from ...host_code import compiled

LOG2_E = np.float32(1.4426950408889634)
NOTHING = np.float32(-1e30)
"""Largest score of a query that has seen nothing."""
UNSEEN = np.float32(-2e30)
"""Score of a slot that a query does not see."""


@compiled
def _power_of_two(x):
    """2^x, to 2e-7 of it, for x <= 0; 0 below 2^-126."""
    whole = np.floor(x)
    y, f = np.float32(1.8775767e-3), x - whole
    y = y * f + np.float32(8.9893397e-3)
    y = y * f + np.float32(5.5826318e-2)
    y = y * f + np.float32(2.4015361e-1)
    y = y * f + np.float32(6.9315308e-1)
    y = y * f + np.float32(9.9999994e-1)
    exponent = np.int32(whole if whole > np.float32(-127) else np.float32(-127))
    return y * np.int32((exponent + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled
def weigh(products, count, slots, lost, offsets, positions, sums, top, total, size):
    """Products (M, n) become weights, by the softmax of what was read so far.

    Args:
        offsets: added to the products of a row, (M,).
        positions: slot of each row's own token, (M,).
        sums: of values, (M, Rv), by the largest score so far; updated, as the next two are.
        top, total: that score, in powers of two, and the sum of the weights, (M,).
        size: see `READING`.
    """
    window, softcap, scale = size.window, size.softcap, size.scale
    for m in range(top.shape[0]):
        position, offset = positions[m], offsets[m]
        first = position - window if window else np.int64(-1)
        scores = products[m]
        for n in range(count):
            score = (scores[n] + offset) * scale
            if softcap:
                score = softcap * np.tanh(score / softcap)
            score = score * LOG2_E + lost[n]
            scores[n] = score if first < slots[n] <= position else UNSEEN
        largest = top[m]
        for n in range(count):
            largest = scores[n] if scores[n] > largest else largest
        shrink = _power_of_two(top[m] - largest)
        top[m] = largest
        added = np.float32(0)
        for n in range(count):
            weight = _power_of_two(scores[n] - largest)
            scores[n] = weight
            added += weight
        total[m] = total[m] * shrink + added
        if shrink != 1:
            for k in range(sums.shape[1]):
                sums[m, k] *= shrink
