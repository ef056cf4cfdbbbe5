"""Which parked sequence gives its frames back first.

A policy turns a sequence into a number when it is parked; the lowest number goes first. Running
sequences are never candidates.

    lru             least recently used
    lfu             used least often, then least recently
    fifo            created first
    priority        lowest priority, then least recently used
    flops_per_byte  floating point operations that a hit saves per byte held, on top of the score
                    of the last victim, so that what is not used ages (GreedyDual-Size, Cao and
                    Irani 1997; operations per byte as in Marconi, arXiv 2411.19379)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable

from ..errors import ConfigError
from .sequence import CachedSequence

Score = tuple[float, ...]

POLICIES: dict[str, Callable[[CachedSequence, int, float], Score]] = {
    "lru": lambda sequence, num_bytes, floor: (sequence.last_use,),
    "lfu": lambda sequence, num_bytes, floor: (sequence.uses, sequence.last_use),
    "fifo": lambda sequence, num_bytes, floor: (sequence.created,),
    "priority": lambda sequence, num_bytes, floor: (sequence.priority, sequence.last_use),
    "flops_per_byte": lambda sequence, num_bytes, floor: (
        floor + sequence.saved_flops / max(1, num_bytes),
        sequence.last_use,
    ),
}
"""Score of a sequence that holds `num_bytes` bytes; `floor` is the last victim's."""


class EvictionQueue:
    """Parked sequences in the order in which they would be evicted; O(log n) per operation.

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
        self._heap: list[tuple[Score, int, Hashable]] = []
        self._entry: dict[Hashable, int] = {}
        self._counter = 0

    def __len__(self) -> int:
        return len(self._entry)

    def push(self, sequence: CachedSequence, num_bytes: int) -> None:
        """Add a sequence that holds `num_bytes` bytes."""
        self._counter += 1
        self._entry[sequence.seq_id] = self._counter
        score = POLICIES[self.policy](sequence, num_bytes, self._floor)
        heapq.heappush(self._heap, (score, self._counter, sequence.seq_id))

    def discard(self, seq_id: Hashable) -> None:
        """Forget a sequence; its place in the heap is skipped when it comes up."""
        self._entry.pop(seq_id, None)
        if len(self._heap) > 2 * len(self._entry) + 16:
            self._heap = [entry for entry in self._heap if self._entry.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def pop(self) -> Hashable:
        """Remove and return the sequence to evict first."""
        while True:
            score, counter, seq_id = heapq.heappop(self._heap)
            if self._entry.get(seq_id) == counter:
                del self._entry[seq_id]
                self._floor = score[0]
                return seq_id
