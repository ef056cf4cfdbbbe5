"""The weight of a policy is the one that would have saved the most."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.pool.counted_frames import counted_store
from cacheshrink_hybrid.pool.prefixes.keeper import PrefixKeeper
from cacheshrink_hybrid.pool.prefixes.placement import placement_of
from cacheshrink_hybrid.pool.prefixes.replay import replay
from cacheshrink_hybrid.pool.prefixes.weight_tuning import BOOTSTRAP
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.pool.shadow import coded_layout, codes_of, small_layout

HYBRID = small_layout(windows=(None,))


class Serving:
    """A small store by Marconi's rules, and requests that come to it."""

    def __init__(self, num_frames: int, store: SequenceStore | None = None) -> None:
        self.store = store or counted_store(HYBRID, num_frames, policy="marconi")
        self.keeper = PrefixKeeper(self.store, placement_of("marconi"))
        self.count = 0

    @property
    def weight(self) -> float:
        return self.store.prefixes.queue.weight

    def serve(self, tokens: list[int]) -> int:
        self.count += 1
        return replay(self.store, self.keeper, np.array(tokens), len(tokens)).num_tokens


def long_and_short(serving: Serving, rounds: int) -> int:
    """A long conversation that goes on in every round, and short ones that never do, one more than
    fit beside it, so that the latest uses say the wrong thing; tokens that were saved."""
    long, saved = list(range(1000, 1100)), 0
    for _ in range(rounds):
        saved += serving.serve(long)
        long = [*long, 7]
        for _ in range(5):
            saved += serving.serve([-serving.count] * 9)
    return saved


def test_what_saves_much_is_kept_once_that_was_seen_to_pay() -> None:
    """By recency alone, which is how it begins, the conversation would be gone in every round."""
    roomy = HYBRID.frames_for(130) + 4 * (HYBRID.state.num_frames + 2)
    serving = Serving(roomy)
    first = long_and_short(serving, 1)
    assert (first, serving.weight) == (0, 0.0)
    while serving.keeper._tuning is not None:
        assert serving.weight == 0
        assert long_and_short(serving, 1) == 0
        assert serving.count < 99
    assert serving.weight > 0
    assert long_and_short(serving, 4) > 2 * 100


def test_when_the_weight_is_chosen() -> None:
    """After `BOOTSTRAP` times as many requests as came up to the first victim; what saves as much
    with every weight leaves it at 0."""
    serving = Serving(HYBRID.frames_for(60) + HYBRID.state.num_frames)
    while not serving.store.prefixes.evicted:
        serving.serve([serving.count] * 20)
    due = (1 + BOOTSTRAP) * serving.count
    while serving.count < due:
        assert serving.keeper._tuning is not None
        serving.serve([serving.count] * 20)
    assert serving.keeper._tuning is None
    assert serving.weight == 0.0


@pytest.mark.parametrize("policy", ["lru", "learned"])
def test_policies_without_weights_are_not_tuned(policy: str) -> None:
    store = counted_store(HYBRID, 100, policy=policy)
    assert PrefixKeeper(store, placement_of("learned"))._tuning is None


def test_states_that_are_kept_in_a_code_take_their_frames() -> None:
    layout = coded_layout()
    store = counted_store(layout, 300, policy="marconi", codes=codes_of(layout))
    serving = Serving(300, store)
    for _ in range(2):
        serving.serve([1] * 40)
    (twin, *_) = (twin for twin, _ in serving.keeper._tuning._twins)  # type: ignore[union-attr]
    assert twin.prefixes.kept_state == store.prefixes.kept_state != layout.state
    assert twin.statistics().frames == store.statistics().frames
