"""The online softmax, compiled, in powers of two."""

import numpy as np

from ...host_code import compiled
from .exponentials import largest_of, powers_of_two
from .lines import up
from .tiles import LANES

LOG2_E = np.float32(1.4426950408889634)
NOTHING = np.float32(-1e30)
"""Largest score of a query that has seen nothing."""
UNSEEN = np.float32(-2e30)
"""Score of a slot that a query does not see."""


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
    window, softcap = size.window, size.softcap
    lost_any = False
    for n in range(count):
        lost_any |= lost[n] != 0
    for m in range(top.shape[0]):
        position, scores = positions[m], products[m]
        first = position - window if window else np.int64(-1)
        offset, scale = offsets[m], size.scale
        if softcap:
            for n in range(count):
                scores[n] = softcap * np.tanh((scores[n] + offset) * scale / softcap)
            offset, scale = np.float32(0), np.float32(1)
        scale *= LOG2_E
        for n in range(count):
            scores[n] = (scores[n] + offset) * scale
        if lost_any:
            for n in range(count):
                scores[n] += lost[n]
        if not (first < slots[0] and slots[count - 1] <= position):
            for n in range(count):
                scores[n] = scores[n] if first < slots[n] <= position else UNSEEN
        for n in range(count, up(count, LANES)):
            scores[n] = UNSEEN
        largest = largest_of(scores, count, top[m])
        if largest > top[m]:
            shrink = np.exp2(top[m] - largest)
            top[m] = largest
            total[m] *= shrink
            for k in range(sums.shape[1]):
                sums[m, k] *= shrink
        total[m] += powers_of_two(scores, count, largest)
