"""Items in the order in which a policy evicts them."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

import numpy as np

from .eviction import Evictable, Policy, Score, policy_of

Item = TypeVar("Item", bound=Evictable)

FORGETTING = 0.99
"""Weight of a lifetime after each further one."""


class EvictionQueue(Generic[Item]):
    """Items whose scores stand for themselves; O(log n) per operation.

    Attributes:
        floor: score of the last victim.
        moment: time as lifetimes count it.
        weight: of the second number of a score, for those that are weighed.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.floor = self.moment = self.weight = 0.0
        self._lifetime = self._total = 0.0
        """Mean of uses between the last one of a victim and its eviction, and what it rests on."""
        self._heap: list[tuple[Score, int, Item]] = []
        self._entry: dict[Item, int] = {}
        self._bytes: dict[Item, int] = {}
        self._counter = 0

    def __len__(self) -> int:
        return len(self._entry)

    def push(self, item: Item, num_bytes: int) -> None:
        """Add what holds `num_bytes` bytes, or find its place anew."""
        self.discard(item)
        self._counter += 1
        self._entry[item], self._bytes[item] = self._counter, num_bytes
        self._place(item, self.policy.score(item, num_bytes))

    def discard(self, item: Item) -> None:
        """Forget an item, if it is there."""
        self._entry.pop(item, None)
        self._bytes.pop(item, None)
        self._displace(item)

    def outranks(self, item: Item, num_bytes: int) -> bool:
        """Whether something that is not in the queue would not be the first to go, if it were."""
        while self._heap and self._entry.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return not self._heap or self.policy.score(item, num_bytes) > self._heap[0][0]

    def next_moment(self) -> float:
        """Something was used: the moment of that."""
        self.moment += 1 / max(1.0, self._lifetime)
        return self.moment

    def pop(self, clock: int) -> Item:
        """Remove and return the item to evict first.

        Args:
            clock: now, as `last_use` has it.
        """
        item, self.floor = self._first()
        self._observe(clock - item.last_use, item)
        self.discard(item)
        return item

    def _place(self, item: Item, score: Score) -> None:
        heapq.heappush(self._heap, (score, self._entry[item], item))

    def _displace(self, item: Item) -> None:
        """Its place in the heap is skipped when it comes up."""
        if len(self._heap) > 2 * len(self._entry) + 16:
            self._heap = [entry for entry in self._heap if self._entry.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def _first(self) -> tuple[Item, float]:
        while True:
            score, counter, item = heapq.heappop(self._heap)
            if self._entry.get(item) == counter:
                return item, score[0]

    def _observe(self, lifetime: int, item: Item) -> None:
        """Of an item that is evicted; what was likely to be of use counts."""
        if item.saved_seconds > 0:
            weight = item.odds * self._bytes[item]
            self._total = FORGETTING * self._total + weight
            if self._total > 0:
                self._lifetime += weight / self._total * (lifetime - self._lifetime)


class WeighedQueue(EvictionQueue[Item]):
    """Items whose scores (a, b) are compared as a + `weight` b, both brought to [0, 1] over all
    items; O(n) per victim."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._scores: dict[Item, Score] = {}

    def outranks(self, item: Item, num_bytes: int) -> bool:
        scores = [*self._scores.values(), self.policy.score(item, num_bytes)]
        worth = weighed(scores, self.weight)
        return len(scores) == 1 or bool(worth[-1] > worth[:-1].min())

    def _place(self, item: Item, score: Score) -> None:
        self._scores[item] = score

    def _displace(self, item: Item) -> None:
        self._scores.pop(item, None)

    def _first(self) -> tuple[Item, float]:
        worth = weighed(list(self._scores.values()), self.weight)
        first = int(worth.argmin())
        return list(self._scores)[first], float(worth[first])


def weighed(scores: list[Score], weight: float) -> np.ndarray:
    """What (n, 2) numbers come to, (n,): each column from 0 to 1, or 0 where all are equal."""
    columns = np.asarray(scores, dtype=np.float64)
    lowest, highest = columns.min(axis=0), columns.max(axis=0)
    span = np.where(highest > lowest, highest - lowest, 1.0)
    return ((columns - lowest) / span) @ np.array([1.0, weight])


def queue_of(name: str) -> EvictionQueue:
    """An empty queue by the policy of this name.

    Raises:
        ConfigError: no such name.
    """
    policy = policy_of(name)
    return WeighedQueue(policy) if policy.weights else EvictionQueue(policy)
