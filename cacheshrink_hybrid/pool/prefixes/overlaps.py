"""How far prompts were found, and the checkpoints that are best for that.

Prompts that were found for t bins of tokens compute again what lies behind the last checkpoint at
or before t. With weights p_t, checkpoints s_1 < ... < s_M cost

    sum_t p_t (t - max {s_k <= t}),   where that is t if there is none,

and the best ones for the bins 0 .. j follow from those for fewer:

    D(0, j) = sum_(t <= j) p_t t
    D(m, j) = min_(s <= j) D(m - 1, s - 1) + sum_(t = s .. j) p_t (t - s)

With P and T the sums of p_t and of p_t t, the bracket is a line in P_j, of slope -s. Slopes fall
and P_j grows with j, so the minimum over all s is found by a lower hull: O(bins) for each m.

Reference: arXiv 2605.05219 (Shirokikh and Nikolenko), where the same is solved in O(bins^2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate

BIN_TOKENS = 64


class BestCheckpoints:
    """Checkpoints of least cost for weights of bins.

    Args:
        weights: p_t, none below 0.
        count: most checkpoints.
    """

    def __init__(self, weights: Sequence[float], count: int) -> None:
        self._costs = [list(accumulate(p * t for t, p in enumerate(weights)))]
        self._choices: list[list[int]] = []
        mass, moment = list(accumulate(weights)), self._costs[0]
        for _ in range(count):
            costs, choices = _with_one_more(self._costs[-1], mass, moment)
            self._costs.append(costs)
            self._choices.append(choices)

    def cost(self, last: int) -> float:
        """Of the best checkpoints for the bins 0 .. `last`."""
        return self._costs[-1][last]

    def bins(self, last: int) -> list[int]:
        """The best checkpoints for these bins; as few as cost no more."""
        found = []
        for number in range(len(self._choices), 0, -1):
            if last >= 1 and self._costs[number][last] < self._costs[number - 1][last]:
                found.append(self._choices[number - 1][last])
                last = found[-1] - 1
        return found[::-1]


def _with_one_more(
    before: Sequence[float], mass: Sequence[float], moment: Sequence[float]
) -> tuple[list[float], list[int]]:
    """Costs D(m, j) for all j, and the s that they are found at, from D(m - 1, j)."""
    costs, choices = [before[0]], [0]
    hull: deque[tuple[int, float]] = deque()
    """Lines (s, value where P_j is 0), each the lowest somewhere."""
    for j in range(1, len(before)):
        hull_line = j, before[j - 1] - moment[j - 1] + j * mass[j - 1]
        while len(hull) > 1 and _is_never_lowest(hull[-2], hull[-1], hull_line):
            hull.pop()
        hull.append(hull_line)
        at = mass[j]
        while len(hull) > 1 and hull[1][1] - hull[1][0] * at <= hull[0][1] - hull[0][0] * at:
            hull.popleft()
        s, value = hull[0]
        costs.append(value - s * at + moment[j])
        choices.append(s)
    return costs, choices


def _is_never_lowest(
    left: tuple[int, float], middle: tuple[int, float], right: tuple[int, float]
) -> bool:
    """Whether the line between two others lies above where these cross."""
    steps = (right[1] - left[1]) * (middle[0] - left[0])
    return steps <= (middle[1] - left[1]) * (right[0] - left[0])


class OverlapPlan:
    """Positions that follow how far prompts are found. Equal distances until there is a first plan.

    Args:
        count: checkpoints per prompt.
        decay: what an observation weighs after each further one.
        replan_every: observations between two plans; None for one plan, after the first
            `FIRST_PLAN`.
        bin_tokens: tokens that are not told apart; positions are multiples of them.
    """

    FIRST_PLAN = 100

    def __init__(
        self,
        count: int,
        *,
        decay: float = 1.0,
        replan_every: int | None = 100,
        bin_tokens: int = BIN_TOKENS,
    ) -> None:
        self.count, self.decay = count, decay
        self.replan_every, self.bin_tokens = replan_every, bin_tokens
        self.weights: list[float] = []
        self.num_observed = 0
        self._best: BestCheckpoints | None = None

    def observe(self, num_tokens: int) -> None:
        """A prompt was found for so many tokens, 0 if not at all."""
        number = num_tokens // self.bin_tokens
        self.weights += [0.0] * (number + 1 - len(self.weights))
        if self.decay < 1:
            self.weights = [self.decay * weight for weight in self.weights]
        self.weights[number] += 1
        self.num_observed += 1
        if self.replan_every is None:
            due = self.num_observed == self.FIRST_PLAN
        else:
            due = self.num_observed % self.replan_every == 0
        if due:
            self._best = BestCheckpoints(self.weights, self.count)
            self._num_bins = len(self.weights)

    def positions(self, num_tokens: int) -> list[int]:
        """Of a prompt of so many tokens: the best ones for what is found within its length."""
        if self._best is None:
            step = max(1, num_tokens // (self.count + 1))
            places = [step * number for number in range(1, self.count + 1)]
            return [place for place in places if place <= num_tokens]
        last = min(num_tokens // self.bin_tokens, self._num_bins - 1)
        return [self.bin_tokens * number for number in self._best.bins(last)]
