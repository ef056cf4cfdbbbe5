"""Which prefix gives its frames back first.

A policy turns a prefix into a number whenever it is used; the lowest number goes first. Running
sequences are never candidates.

    lru               least recently used
    lfu               used least often, then least recently
    fifo              created first
    priority          lowest priority, then least recently used
    seconds_per_byte  seconds of computing that a hit saves per byte held, on top of the score of
                      the last victim, so that what is not used ages (GreedyDual-Size, Cao and
                      Irani 1997; Marconi, arXiv 2411.19379, weighs operations per byte)
"""

from __future__ import annotations

import heapq
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
    """

    priority: float
    created: int
    last_use: int
    uses: int
    saved_seconds: float


Item = TypeVar("Item", bound=Evictable)

POLICIES: dict[str, Callable[[Evictable, int, float], Score]] = {
    "lru": lambda item, num_bytes, floor: (item.last_use,),
    "lfu": lambda item, num_bytes, floor: (item.uses, item.last_use),
    "fifo": lambda item, num_bytes, floor: (item.created,),
    "priority": lambda item, num_bytes, floor: (item.priority, item.last_use),
    "seconds_per_byte": lambda item, num_bytes, floor: (
        floor + item.saved_seconds / max(1, num_bytes),
        item.last_use,
    ),
}
"""Score of what holds `num_bytes` bytes; `floor` is the last victim's."""


class EvictionQueue(Generic[Item]):
    """Items in the order in which they would be evicted; O(log n) per operation.

    Raises:
        ConfigError: an unknown policy.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise ConfigError(
                f"eviction policy {policy!r} is unknown; choose one of {', '.join(POLICIES)}"
            )
        self.policy = policy
        self._floor = 0.0
        self._heap: list[tuple[Score, int, Item]] = []
        self._entry: dict[Item, int] = {}
        self._counter = 0

    def __len__(self) -> int:
        return len(self._entry)

    def push(self, item: Item, num_bytes: int) -> None:
        """Add what holds `num_bytes` bytes, or find its place anew."""
        self.discard(item)
        self._counter += 1
        self._entry[item] = self._counter
        score = POLICIES[self.policy](item, num_bytes, self._floor)
        heapq.heappush(self._heap, (score, self._counter, item))

    def discard(self, item: Item) -> None:
        """Forget an item; its place in the heap is skipped when it comes up."""
        self._entry.pop(item, None)
        if len(self._heap) > 2 * len(self._entry) + 16:
            self._heap = [entry for entry in self._heap if self._entry.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def pop(self) -> Item:
        """Remove and return the item to evict first."""
        while True:
            score, counter, item = heapq.heappop(self._heap)
            if self._entry.get(item) == counter:
                del self._entry[item]
                self._floor = score[0]
                return item
