"""What goes first, how much of it, and what a use of a prefix makes younger."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.pool.prefixes.test_tree import HYBRID, found, offered


def store_by(policy: str, num_states: int = 40) -> SequenceStore:
    num_frames = 30 + num_states * HYBRID.state.num_frames
    return SequenceStore(HYBRID, FramePool(num_frames, HYBRID.frame_bytes), policy=policy)


def states(store: SequenceStore) -> list[int]:
    """Positions with a state, of all paths."""
    return sorted(node.end for node in store.prefixes if node.state is not None)


def given_up(store: SequenceStore, count: int) -> list[int]:
    """Positions of the states that go first, inner ones alone."""
    gone = []
    for _ in range(count):
        before = set(states(store))
        store.prefixes.make_free(1)
        gone += sorted(before - set(states(store)))
    return gone


def hit(store: SequenceStore, tokens: Sequence[int]) -> None:
    store.create("hit")
    store.resume_prefix("hit", tokens)
    store.free("hit")


@pytest.mark.parametrize(("policy", "gone"), [("lru", [8, 16]), ("lru_path", [40, 8])])
def test_a_hit_is_a_use_of_what_it_goes_on_from_or_of_the_way(policy: str, gone: list[int]) -> None:
    """States at 8, 16 and 30, and one of another prompt at 40; the hit goes on from 30."""
    store = store_by(policy)
    offered(store, range(30), 8, 16)
    offered(store, range(100, 140))
    hit(store, range(31))
    assert given_up(store, len(gone)) == gone


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        ("lru", [8, 16, 24, 30]),
        ("lru_cap_3", [16, 24, 30]),
        ("lru_cap_2", [24, 30]),
        ("lru_cap_1", [30]),
    ],
)
def test_states_on_a_path_are_capped(policy: str, left: list[int]) -> None:
    store = store_by(policy)
    offered(store, range(30), 8, 16, 24)
    assert states(store) == left
    assert store.prefixes.num_checkpoints == len(left)
    assert store.prefixes.evicted == 4 - len(left)
    store.check_integrity()
    store.prefixes.make_free(store.pool.num_frames)
    assert not list(store.prefixes)


def test_a_cap_leaves_states_where_prompts_part() -> None:
    """Two prompts part at 8, so that the state there stays and the one at 16 goes."""
    store = store_by("lru_cap_2")
    offered(store, range(20), 8)
    offered(store, [*range(8), *range(50, 70)])
    assert states(store) == [8, 20, 28]
    offered(store, [*range(20), *range(80, 90)])
    assert states(store) == [8, 28, 30]
    assert found(store, [*range(8), 99])[0] == 8
    store.check_integrity()


def test_a_capped_state_that_somebody_runs_with_stays_theirs() -> None:
    store = store_by("lru_cap_1")
    offered(store, range(16))
    store.create("running")
    assert store.resume_prefix("running", [*range(16), 5]).num_tokens == 16
    digest = store.digest("running")
    offered(store, [*range(16), *range(60, 70)])
    assert states(store) == [26]
    assert store.digest("running") == digest
    store.check_integrity()


def test_a_state_is_worth_more_once_the_one_before_is_gone() -> None:
    store = store_by("seconds_per_byte")
    offered(store, range(30), 8, 29)
    worth = {node.end: node.saved_seconds for node in store.prefixes}
    assert worth == {8: 8.0, 29: 21.0, 30: 1.0}
    (first,) = (node for node in store.prefixes if node.end == 8)
    store.prefixes.queue.discard(first)
    store.prefixes._give_up_state(first)
    worth = {node.end: node.saved_seconds for node in store.prefixes if node.end > 8}
    assert worth == {29: 29.0, 30: 1.0}


def test_what_a_running_sequence_need_not_copy_takes_nothing_from_others() -> None:
    """Its state is kept with the lowest priority when the pool is full. It is given up, the
    sequence writes over it, and what is more important stays."""
    store = SequenceStore(
        HYBRID, FramePool(4 + 2 * HYBRID.state.num_frames, HYBRID.frame_bytes), policy="priority"
    )
    store.create("important")
    for name, tokens, priority in (("important", range(8), 1.0), ("running", range(50, 58), 0.0)):
        if name not in store:
            store.create(name)
        store.reserve([name], 8)
        store.commit([name])
        store.offer_prefix(name, list(tokens), priority=priority)
    store.free("important")
    store.reserve(["running"], 1)
    store.commit(["running"])
    assert states(store) == [8] and store.prefixes.evicted == 1
    assert found(store, range(9))[0] == 8
    store.check_integrity()
