"""Which prefixes are found again, which bytes they share, and what goes when memory ends."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import pytest

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.layout import Layout
from cacheshrink_hybrid.pool.prefixes.lookup import (
    ALL,
    EVICTED,
    LAST_TOKEN,
    NO_CHECKPOINT,
    NO_PREFIX,
)
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.pool.shadow import Shadowed, small_layout

ATTENTION = small_layout(state=False, windows=(None,))
HYBRID = small_layout(windows=(None,))
WINDOW = small_layout(state=False)


def store_of(layout: Layout, num_frames: int = 200) -> SequenceStore:
    return SequenceStore(layout, FramePool(num_frames, layout.frame_bytes))


def offered(store: SequenceStore, tokens: Sequence[int], *ends: int) -> None:
    """Serve these tokens, offering the sequence at every one of the `ends` and at its own."""
    store.create("offered")
    begin = store.resume_prefix("offered", [*tokens, 0]).num_tokens
    for end in (*[end for end in ends if end > begin], len(tokens)):
        if end > begin:
            store.reserve(["offered"], end - begin)
            store.commit(["offered"])
        store.offer_prefix("offered", tokens[:end])
        begin = end
    store.free("offered")


def found(store: SequenceStore, tokens: Sequence[int]) -> tuple[int, str]:
    lookup = store.prefixes.find(tokens)
    return lookup.num_tokens, lookup.reason


def test_attention_goes_on_anywhere() -> None:
    store = store_of(ATTENTION)
    assert found(store, range(9)) == (0, NO_PREFIX)
    offered(store, range(30))
    assert found(store, range(40)) == (30, NO_PREFIX)
    assert found(store, range(30)) == (29, ALL)
    assert found(store, [*range(13), 99, 98]) == (13, NO_PREFIX)
    offered(store, [*range(13), 99, 98])
    assert found(store, [*range(13), 99, 98, 97, 96]) == (15, NO_PREFIX)
    assert found(store, range(40)) == (30, NO_PREFIX)
    assert store.prefixes.statistics().kept_tokens == 32


def test_states_go_on_where_they_were_kept() -> None:
    store = store_of(HYBRID)
    offered(store, range(30), 16)
    assert found(store, range(40)) == (30, NO_PREFIX)
    assert found(store, range(30)) == (16, LAST_TOKEN)
    assert found(store, range(25)) == (16, NO_CHECKPOINT)
    assert found(store, [*range(9), 99]) == (0, NO_CHECKPOINT)
    offered(store, [*range(9), 99, 98], 9)  # where the two part
    assert found(store, [*range(9), 77, 76]) == (9, NO_PREFIX)
    assert found(store, range(9)) == (0, LAST_TOKEN)
    assert found(store, range(40)) == (30, NO_PREFIX)
    assert store.prefixes.statistics().checkpoints == 4


def test_windows_go_on_where_they_were_kept() -> None:
    """Of 12 tokens, the next one included."""
    store = store_of(WINDOW)
    offered(store, range(40))
    assert found(store, range(50)) == (40, NO_PREFIX)
    assert found(store, range(39)) == (0, NO_CHECKPOINT)
    offered(store, [*range(20), 99], 20)
    assert found(store, [*range(20), 98, 97]) == (20, NO_PREFIX)
    assert found(store, range(50)) == (40, NO_PREFIX)
    assert found(store, range(30)) == (20, NO_CHECKPOINT)


def test_what_holds_nothing_is_not_kept() -> None:
    """States alone: where prompts part, there is no row either."""
    states = small_layout(windows=())
    store = store_of(states, 6 * states.state.num_frames)
    offered(store, [1] * 10)
    offered(store, [1] * 4 + [2] * 3)
    assert store.prefixes.num_tokens == 13
    store.create("rows alone")
    store.reserve(["rows alone"], 8)
    store.commit(["rows alone"])
    store.offer_prefix("rows alone", [1] * 4 + [3] * 4, checkpoint=False)
    assert store.prefixes.num_tokens == 13
    store.prefixes.make_free(store.pool.num_frames)
    assert store.prefixes.num_tokens == 0 == len(list(store.prefixes))
    assert found(store, [1] * 4) == (0, EVICTED)


def test_who_begins_with_a_prefix_copies_what_both_write_to() -> None:
    made = Shadowed(HYBRID, 60)
    texts = [text for text in made.texts if text[:37] == made.texts[-1][:37]][:2]
    for text in texts:
        seq_id = made.create()
        made.twins[seq_id].text = text
        found = made.resume(seq_id, 60)
        assert made.append([seq_id], [37 - found.num_tokens] if not found.num_tokens else [7])
        made.offer(seq_id)
    first, second = made.running()
    assert made.twins[first].tokens != made.twins[second].tokens[:37] or made.saved_tokens == 37
    assert made.append([first, second], [9, 9])
    made.check()
    made.check_prefixes()
    assert made.store.statistics().copied_bytes > 0


def test_memory_goes_leaf_by_leaf_and_states_first_within() -> None:
    store = store_of(HYBRID, 4 + 5 * HYBRID.state.num_frames)
    offered(store, range(30), 8, 16)
    before = store.prefixes.statistics()
    assert (before.checkpoints, before.evicted) == (3, 0)
    store.create("new")
    store.reserve(["new"], 1)
    free = store.pool.num_free
    store.commit(["new"])
    store.prefixes.make_free(1)
    assert found(store, range(16)) == (0, EVICTED)
    assert found(store, [*range(8), 99]) == (0, EVICTED)
    assert found(store, range(40)) == (30, NO_PREFIX)
    assert store.pool.num_free == free + HYBRID.state.num_frames
    store.prefixes.make_free(store.pool.num_frames)
    assert not list(store.prefixes)
    assert found(store, range(40)) == (0, EVICTED)
    assert store.pool.num_held == 1 + HYBRID.state.num_frames
    offered(store, range(3))
    assert found(store, range(40)) == (3, NO_PREFIX)


def test_a_used_prefix_outlives_others() -> None:
    store = store_of(ATTENTION, 12)
    offered(store, [0] * 32)
    offered(store, [1] * 32)
    offered(store, [0] * 33)
    offered(store, [2] * 32)
    assert [found(store, [text] * 33)[0] for text in range(3)] == [32, 24, 32]


def test_attention_gives_up_no_more_of_an_end_than_is_needed() -> None:
    store = store_of(ATTENTION, 20)
    offered(store, range(100))
    for num_frames, left in ((1, 92), (2, 76), (1, 68), (8, 4)):
        free = store.pool.num_free
        store.prefixes.make_free(num_frames)
        assert store.pool.num_free == free + num_frames
        assert found(store, range(100)) == (left, EVICTED)
        store.check_integrity()
    offered(store, range(100))
    assert found(store, range(100)) == (99, ALL)


@pytest.mark.parametrize("layout", [ATTENTION, small_layout()])
def test_copies_of_long_conversations(layout: Layout) -> None:
    store = store_of(layout, 2000)
    for end in range(1, 500, 2):
        offered(store, range(end))
    assert len(list(store.prefixes)) == 250
    twin = copy.deepcopy(store)
    for one in (twin, pickle.loads(pickle.dumps(store))):
        one.check_integrity()
        assert one.statistics() == store.statistics()
        assert one.prefixes.statistics() == store.prefixes.statistics()
        assert found(one, range(900)) == found(store, range(900)) == (499, NO_PREFIX)
        one.prefixes.make_free(one.pool.num_frames)
        assert one.pool.num_held == 0
    assert found(store, range(900)) == (499, NO_PREFIX)


def test_what_others_hold_in_any_case() -> None:
    """Whole frames of all tokens and of first ones; those of windows go."""
    store = store_of(small_layout(state=False, windows=(None, 12), first=8))
    text = range(30)
    offered(store, text, 20)
    assert store.prefixes.num_pinned([*text, 1, 2]) == 0
    store.create("running")
    store.resume_prefix("running", [*text[:20], 90, 91])
    frames_of_first = 8 // store.layout.classes[-1].tokens_per_frame
    assert store.prefixes.num_pinned([*text[:20], 92, 93]) == 2 + frames_of_first
    assert store.prefixes.num_pinned([*text, 1, 2]) == 2 + frames_of_first
    assert store.prefixes.num_pinned([5, 6]) == 0
    store.free("running")
    assert store.prefixes.num_pinned([*text[:20], 92, 93]) == 0


@pytest.mark.parametrize("priority", [-1, float("nan"), float("inf")])
def test_priorities_that_order_nothing(priority: float) -> None:
    store = store_of(ATTENTION)
    store.create("offered")
    store.reserve(["offered"], 3)
    store.commit(["offered"])
    with pytest.raises(ConfigError, match="must be a number of at least 0"):
        store.offer_prefix("offered", [1, 2, 3], priority=priority)
    assert not list(store.prefixes)
    store.check_integrity()


def test_look_ups_are_counted() -> None:
    store = store_of(ATTENTION)
    offered(store, range(10))
    offered(store, range(20))
    store.create("exact")
    store.resume_prefix("exact", range(20))
    statistics = store.prefixes.statistics()
    assert (statistics.lookups, statistics.hits) == (3, 2)
    assert (statistics.asked_tokens, statistics.saved_tokens) == (11 + 21 + 20, 10 + 19)
    assert statistics.limits == {NO_PREFIX: 1, ALL: 1}
    assert statistics.misses == {NO_PREFIX: 1}
    # The frame in which the first prefix ends, of which the second one has a copy that goes on.
    assert statistics.held_bytes == ATTENTION.frame_bytes
    store.free("exact")
    assert store.prefixes.statistics().held_bytes == 4 * ATTENTION.frame_bytes
    store.prefixes.clear()
    assert store.pool.num_held == 0
    assert found(store, range(20)) == (0, NO_PREFIX)
