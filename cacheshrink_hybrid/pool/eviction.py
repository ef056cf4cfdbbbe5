"""Which prefix gives its frames back first.

A policy turns a prefix into a number whenever it is used; the lowest number goes first. Running
sequences are never candidates.

    lru               least recently used
    lfu               used least often, then least recently
    fifo              created first
    priority          lowest priority, then least recently used
    seconds_per_byte  seconds of computing that a hit saves per byte held, on top of the score that
                      the last victim had when this was used, so that what is not used ages
                      (GreedyDual-Size, Cao and Irani 1997; Marconi, arXiv 2411.19379, weighs
                      operations per byte)
    learned           the logarithm of the odds that there will be a hit (`prefixes.odds`), times
                      seconds per byte, plus the moment of the last use. Moments are counted in
                      lifetimes, from the last use to the eviction of what was worth keeping, so
                      that worth falls to 1 / e within one, whatever the load
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ..errors import ConfigError

Score = tuple[float, ...]


class Evictable(Protocol):
    """What may be evicted, with what policies look at.

    Attributes:
        priority: of the least importance first.
        created, last_use: when, by a clock of its owner.
        uses: how often.
        saved_seconds: of computing, by a hit on it.
        odds: that there will be one.
        floor, moment: of the queue, when it was last used.
    """

    priority: float
    created: int
    last_use: int
    uses: int
    saved_seconds: float
    odds: float
    floor: float
    moment: float


Item = TypeVar("Item", bound=Evictable)

POLICIES: dict[str, Callable[[Evictable, int], Score]] = {
    "lru": lambda item, num_bytes: (item.last_use,),
    "lfu": lambda item, num_bytes: (item.uses, item.last_use),
    "fifo": lambda item, num_bytes: (item.created,),
    "priority": lambda item, num_bytes: (item.priority, item.last_use),
    "seconds_per_byte": lambda item, num_bytes: (
        item.floor + item.saved_seconds / max(1, num_bytes),
        item.last_use,
    ),
    "learned": lambda item, num_bytes: (
        item.moment + math.log(max(1e-30, item.odds * item.saved_seconds / max(1, num_bytes))),
        item.last_use,
    ),
}
"""Score of what holds `num_bytes` bytes."""


FORGETTING = 0.99
"""Weight of a lifetime after each further one."""


class EvictionQueue(Generic[Item]):
    """Items in the order in which they would be evicted; O(log n) per operation.

    Attributes:
        floor: score of the last victim.
        moment: time as lifetimes count it.

    Raises:
        ConfigError: an unknown policy.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise ConfigError(
                f"eviction policy {policy!r} is unknown; choose one of {', '.join(POLICIES)}"
            )
        self.policy = policy
        self.floor = self.moment = 0.0
        self._lifetime = self._weight = 0.0
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
        score = POLICIES[self.policy](item, num_bytes)
        heapq.heappush(self._heap, (score, self._counter, item))

    def discard(self, item: Item) -> None:
        """Forget an item; its place in the heap is skipped when it comes up."""
        self._entry.pop(item, None)
        self._bytes.pop(item, None)
        if len(self._heap) > 2 * len(self._entry) + 16:
            self._heap = [entry for entry in self._heap if self._entry.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def outranks(self, item: Item, num_bytes: int) -> bool:
        """Whether something that is not in the queue would not be the first to go, if it were."""
        while self._heap and self._entry.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return not self._heap or POLICIES[self.policy](item, num_bytes) > self._heap[0][0]

    def next_moment(self) -> float:
        """Something was used: the moment of that."""
        self.moment += 1 / max(1.0, self._lifetime)
        return self.moment

    def pop(self, clock: int) -> Item:
        """Remove and return the item to evict first.

        Args:
            clock: now, as `last_use` has it.
        """
        while True:
            score, counter, item = heapq.heappop(self._heap)
            if self._entry.get(item) == counter:
                self._observe(clock - item.last_use, item)
                self.discard(item)
                self.floor = score[0]
                return item

    def _observe(self, lifetime: int, item: Item) -> None:
        """Of an item that is evicted; what was likely to be of use counts."""
        if item.saved_seconds > 0:
            weight = item.odds * self._bytes[item]
            self._weight = FORGETTING * self._weight + weight
            if self._weight > 0:
                self._lifetime += weight / self._weight * (lifetime - self._lifetime)
