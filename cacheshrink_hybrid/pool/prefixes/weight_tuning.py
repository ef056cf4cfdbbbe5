"""How much the second number of a score weighs, for policies that weigh two.

The first victim shows that memory is short. From then on `BOOTSTRAP` times as many requests as came
before it are served once more for every weight of the policy, in stores that count frames and hold
no bytes. The weight that saved the most tokens is taken. Until then it is 0.

Reference: Marconi, arXiv 2411.19379, section 4.2, where requests are recorded and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..counted_frames import counted_twin
from ..store import SequenceStore
from .replay import Keeping, replay

BOOTSTRAP = 5


class WeightTuning:
    """Chooses the weight of a store's policy, once.

    Args:
        store: whose policy has weights.
        keeping: makes a keeper, which tunes nothing itself, for one of the other stores.

    Attributes:
        is_done: whether the weight was chosen.
    """

    def __init__(self, store: SequenceStore, keeping: Callable[[SequenceStore], Keeping]) -> None:
        self._queue, self._prefixes = store.prefixes.queue, store.prefixes
        self.is_done = False
        self._twins: list[tuple[SequenceStore, Keeping]] = []
        for weight in self._queue.policy.weights:
            twin = counted_twin(store)
            twin.prefixes.queue.weight = weight
            self._twins.append((twin, keeping(twin)))
        self._num_served = 0
        self._due: int | None = None

    def serve(self, tokens: Any, num_prompt_tokens: int) -> None:
        """A request leaves, of which these tokens were fed, the prompt first."""
        for twin, keeper in self._twins:
            replay(twin, keeper, tokens, num_prompt_tokens)
        self._num_served += 1
        if self._due is None and self._prefixes.evicted:
            self._due = (1 + BOOTSTRAP) * self._num_served
        if self._num_served == self._due:
            best = max(self._twins, key=lambda twin: twin[0].prefixes.counts.saved_tokens)
            self._queue.weight = best[0].prefixes.queue.weight
            self.is_done = True
