"""What the operations on sequences do, share, cost and refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cacheshrink_hybrid.errors import (
    CacheFullError,
    ConfigError,
    FrameError,
    NotSupportedError,
    SequenceError,
)
from cacheshrink_hybrid.pool import arena
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.layout import compile_layout
from cacheshrink_hybrid.pool.lifetime import LayerRows
from cacheshrink_hybrid.pool.state_map import StateRows
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.pool.shadow import Shadowed, small_layout


def shadowed(num_frames: int = 30, **settings) -> Shadowed:
    kinds = {name: settings.pop(name) for name in ("state", "windows") if name in settings}
    return Shadowed(small_layout(**kinds), num_frames, **settings)


def filled(made: Shadowed, num_tokens: int) -> int:
    seq_id = made.create()
    assert made.append([seq_id], [num_tokens])
    return seq_id


def test_need_is_exact() -> None:
    made = shadowed(windows=(None,))
    for num_tokens in (1, 8, 9, 33):
        before = made.pool.num_free
        seq_id = filled(made, num_tokens)
        assert before - made.pool.num_free == made.store.need(num_tokens)
        made.free(seq_id)


def test_admission_is_free_plus_evictable() -> None:
    made = shadowed(20, windows=(None,), state=False)
    kept = [filled(made, 40) for _ in range(2)]
    made.offer(kept[0])
    assert made.copy_prefix(kept[0], 16)
    made.free(kept[0])
    assert made.pool.num_free == 10
    assert made.store.num_available == 13 == made.store.need(13 * 8)
    seq_id = made.create()
    assert not made.append([seq_id], [13 * 8 + 1])
    assert made.store.prefixes.num_tokens == 40
    assert made.append([seq_id], [13 * 8])
    assert made.store.prefixes.num_tokens == 16  # that the copy holds in any case
    made.check()


def test_a_sequence_needs_no_copy_of_what_it_shares_with_prefixes_that_go() -> None:
    """The pool is full, and the frame to write to is shared with a prefix alone."""
    made = shadowed(3, windows=(None,), state=False)
    seq_id = filled(made, 20)
    made.offer(seq_id)
    assert made.append([seq_id], [4])
    assert made.store.prefixes.num_tokens == 12  # of frames that are not written to
    assert not made.append([seq_id], [1])
    made.check()


def test_a_state_larger_than_any_gap_fits_what_is_free() -> None:
    """Two ends or two ratios refuse a state when the room lies on the other side. Here whatever
    is free serves, however it is scattered."""
    layout = compile_layout(
        [LayerRows(layer_idx=0, row_bytes=32)],
        [StateRows(layer_idx=1, name="recurrent", num_rows=20, row_bytes=256)],
        tokens_per_frame=8,
    )
    size = layout.state.num_frames
    made = Shadowed(layout, 3 * size + 40)
    held = [filled(made, 8) for _ in range(3)]
    crumbs = []
    while made.pool.num_free:
        crumbs.append(filled(made, 8) if made.pool.num_free > size else held[0])
        if crumbs[-1] == held[0]:
            made.append([held[0]], [8 * made.pool.num_free])
    assert made.pool.num_free == 0
    made.remove(held[0], 0)
    made.free(held[1])
    assert made.pool.num_free >= size + 1
    assert made.pool.statistics().external_fragmentation > 0
    filled(made, 8)
    made.check()


def test_forks_share_until_they_write() -> None:
    made = shadowed(windows=(None,))
    parent = filled(made, 20)
    free = made.pool.num_free
    child = made.next_id
    made.copy_prefix(parent, 20)
    assert made.pool.num_free == free
    made.append([child], [1])
    state_frames = made.layout.state.num_frames
    assert free - made.pool.num_free == 1 + state_frames
    assert made.store.statistics().copied_bytes == made.layout.frame_bytes
    made.append([parent], [1])
    assert made.store.statistics().copied_bytes == made.layout.frame_bytes
    made.check()


def test_whole_frames_are_never_copied() -> None:
    made = shadowed(windows=(None,), state=False)
    parent = filled(made, 16)
    child = made.next_id
    made.copy_prefix(parent, 16)
    made.append([parent, child], [3, 3])
    assert made.store.statistics().copied_bytes == 0
    made.check()


def test_windows_give_frames_back() -> None:
    made = shadowed(state=False, windows=(12,), history=0)
    seq_id = filled(made, 8)
    most = 0
    for _ in range(100):
        assert made.append([seq_id], [1])
        most = max(most, made.pool.num_held)
    assert most == 3
    assert made.store.first_position(seq_id, 0) == 108 - 12
    made.check()


def test_unequal_batches_grow_together() -> None:
    made = shadowed(windows=(None,))
    ids = [filled(made, n) for n in (3, 17, 8)]
    assert made.append(ids, [9, 0, 1])
    assert made.store.context_lens(ids).tolist() == [12, 17, 9]
    assert made.store.frame_table(ids).shape == (3, 3)
    assert (made.store.frame_table(ids)[2] == -1).tolist() == [False, False, True]
    made.check()


def test_batches_in_step_stay_evenly_spaced() -> None:
    made = shadowed(60, windows=(None,), state=False)
    ids = [made.create() for _ in range(3)]
    for count in (20, 5, 1, 14):
        made.append(ids, [count] * 3)
    table = made.store.frame_table(ids)
    assert table.shape == (3, 5)
    assert (table.diff(dim=1) == 3).all()
    assert (table.diff(dim=0) == 1).all()


def test_the_state_of_a_fork_is_read_from_its_parent() -> None:
    made = shadowed(windows=(None,))
    parent = filled(made, 5)
    child = made.next_id
    made.copy_prefix(parent, 5)
    made.store.reserve([child], 1)
    read, write = made.store.state_tables([child])
    assert torch.equal(read, made.store.state_tables([parent])[0])
    assert not set(read.flatten().tolist()) & set(write.flatten().tolist())
    made.store.commit([child])
    assert torch.equal(made.store.state_tables([child])[0], write)


def test_fresh_states_are_zero() -> None:
    made = shadowed(windows=(None,))
    for _ in range(2):
        seq_id = made.create()
        made.store.reserve([seq_id], 3)
        read, write = made.store.state_tables([seq_id])
        assert torch.equal(read, write)
        assert arena.read_state(made.pool, made.layout.state, read.long(), 0).sum() == 0
        made.store.free(seq_id)


def test_going_back_to_a_checkpoint() -> None:
    made = shadowed(windows=(None,))
    seq_id = filled(made, 5)
    made.checkpoint(seq_id)
    for _ in range(3):
        made.append([seq_id], [4])
    assert made.store.checkpoints(seq_id) == [5]
    assert [p for p in range(18) if made.store.can_resume(seq_id, p)] == [0, 5, 17]
    assert not made.remove(seq_id, 6)
    assert made.remove(seq_id, 5)
    made.check()
    made.append([seq_id], [2])
    made.check()


def test_rejected_tokens_cannot_be_taken_out_of_a_state() -> None:
    made = shadowed(windows=(None,))
    seq_id = filled(made, 5)
    made.store.reserve([seq_id], 4)
    with pytest.raises(NotSupportedError, match="state has taken all"):
        made.store.commit([seq_id], 2)
    made.store.commit([seq_id], 0)
    assert made.store.num_tokens(seq_id) == 5


def test_a_revocable_step_writes_its_state_beside_the_one_before() -> None:
    made = shadowed(windows=(None,))
    seq_id, other = filled(made, 5), filled(made, 3)
    before, held = made.store.digest(seq_id), made.pool.num_held
    made.store.reserve([seq_id, other], [2, 1], revocable=[True, False])
    read, write = made.store.state_tables([seq_id, other])
    assert read[1].tolist() == write[1].tolist()
    assert set(read[0].tolist()).isdisjoint(write[0].tolist())
    made.pool.zero(write[0].numpy().astype("int64"))
    made.store.commit([seq_id, other], 0)
    assert made.store.digest(seq_id) == before
    made.store.reserve([seq_id], [2], revocable=[True])
    made.store.commit([seq_id], 2)
    assert made.pool.num_held == held
    with pytest.raises(SequenceError, match="must be told of each of 2"):
        made.store.reserve([seq_id, other], 1, revocable=[True])
    made.store.check_integrity()


def test_rows_that_do_not_stay_give_their_frames_back() -> None:
    made = shadowed(windows=(None, 4), state=False)
    seq_id = filled(made, 5)
    made.store.reserve([seq_id], 40)
    made.store.commit([seq_id], 3)
    assert made.store.num_tokens(seq_id) == 8
    grown = shadowed(windows=(None, 4), state=False)
    assert grown.append([filled(grown, 5)], [3])
    assert made.pool.num_held <= grown.pool.num_held + 1
    for number, lifetime in enumerate(made.layout.classes):
        table = made.store.frame_table([seq_id], number)
        assert table.shape[1] <= lifetime.table_length(8)
    made.store.check_integrity()


def test_rejected_tokens_of_attention_are_simply_not_counted() -> None:
    made = shadowed(windows=(None,), state=False)
    seq_id = filled(made, 5)
    made.store.reserve([seq_id], 30)
    made.store.commit([seq_id], 0)
    made.append([seq_id], [2])
    made.check()


@pytest.mark.parametrize(
    ("policy", "victims"),
    [
        ("fifo", [0, 1, 2]),
        ("lru", [1, 2, 0]),
        ("lfu", [1, 0, 2]),
        ("priority", [2, 1, 0]),
        ("seconds_per_byte", [1, 0, 2]),
    ],
)
def test_policies(policy: str, victims: list[int]) -> None:
    layout = small_layout(state=False, windows=(None,))
    store = SequenceStore(layout, FramePool(12, layout.frame_bytes), policy=policy)
    store.prefixes.seconds = lambda begin, end: {14: 5.0, 15: 1.0, 16: 9.0}[end]
    for seq_id, priority in enumerate([3.0, 2.0, 1.0]):
        store.create(seq_id)
        store.reserve([seq_id], 14 + seq_id)
        store.commit([seq_id])
        store.offer_prefix(seq_id, [seq_id] * (14 + seq_id), priority=priority)
        store.free(seq_id)
    for text in (0, 1, 2, 2, 2, 0):
        store.create("hit")
        assert store.resume_prefix("hit", [text] * 17).num_tokens == 14 + text
        store.free("hit")
    store.create("new")
    order = []
    for _ in range(3):
        before = kept_texts(store)
        store.reserve(["new"], (store.pool.num_free + 2) * 8)
        store.commit(["new"])
        order += before - kept_texts(store)
    assert order == victims
    assert store.prefixes.evicted == 3


def kept_texts(store: SequenceStore) -> set[int]:
    """First tokens of the prefixes."""
    return {int(node.tokens[0]) for node in store.prefixes}


def test_unknown_policy() -> None:
    allowed = "choose one of lru, lru_path, lfu, fifo, priority, seconds_per_byte, marconi"
    with pytest.raises(ConfigError, match=allowed):
        shadowed(policy="random")


def test_statistics_add_up() -> None:
    made = shadowed(windows=(None,))
    parent = filled(made, 12)
    made.copy_prefix(parent, 12)
    made.offer(parent)
    made.free(parent)
    statistics = made.store.statistics()
    layout = made.layout
    useful = 12 * layout.bytes_per_token + layout.state.useful_bytes
    assert statistics.useful_bytes == useful
    assert statistics.held_bytes == (2 + layout.state.num_frames) * layout.frame_bytes
    assert statistics.internal_fragmentation == pytest.approx(1 - useful / statistics.held_bytes)
    assert statistics.frames.by_kind == {"kv": 2, "state": layout.state.num_frames}
    assert statistics.num_sequences == 1
    assert statistics.frames.shared == 2 + layout.state.num_frames


def test_book_keeping_is_small() -> None:
    """Below one percent of an arena with frames of 16 KiB."""
    pool = FramePool(2000, 16384)
    assert pool.table_nbytes < 0.01 * pool.nbytes


def refuse(store: SequenceStore) -> list:
    """(call, message) of what a caller can do wrong; a has 9 tokens, b is busy."""
    return [
        (lambda: store.create("a"), "exists already"),
        (lambda: store.fork("nobody", "c"), "'nobody' is unknown"),
        (lambda: store.fork("a", "b"), "exists already"),
        (lambda: store.copy_prefix("a", "c", 10), "has 9 tokens"),
        (lambda: store.copy_prefix("a", "c", -1), "has 9 tokens"),
        (lambda: store.fork("b", "c"), "3 reserved"),
        (lambda: store.reserve(["a", "nobody"], 1), "unknown"),
        (lambda: store.reserve(["a", "a"], 1), "once each"),
        (lambda: store.reserve(["a"], -1), ">= 0"),
        (lambda: store.reserve(["a"], [1, 2]), "one number"),
        (lambda: store.reserve(["a", "b"], 1), "3 reserved"),
        (lambda: store.reserve(["a"], 10_000), "frames .* are needed"),
        (lambda: store.commit(["a"], 1), "0 are reserved"),
        (lambda: store.commit(["b"], 4), "3 are reserved"),
        (lambda: store.remove("a", 10), "has 9 tokens"),
        (lambda: store.remove("a", -1), "has 9 tokens"),
        (lambda: store.offer_prefix("a", range(8)), "9 tokens, 0 of them padding, and 8 are"),
        (lambda: store.offer_prefix("e", []), "has 0 tokens"),
        (lambda: store.offer_prefix("b", range(9)), "3 reserved"),
        (lambda: store.offer_prefix("padded", range(9)), "9 tokens, 2 of them padding"),
        (lambda: store.resume_prefix("a", [5]), "9 tokens and is to take 1; resume an empty one"),
        (lambda: store.resume_prefix("e", []), "with at least one token to take"),
        (lambda: store.free("a", "nobody"), "unknown"),
        (lambda: store.can_resume("nobody", 0), "unknown"),
        (lambda: store.state_tables(["e"]), "no state yet"),
    ]


@pytest.mark.parametrize("number", range(25))
def test_refusals_change_nothing(number: int) -> None:
    layout = small_layout(windows=(None,))
    store = SequenceStore(layout, FramePool(30, layout.frame_bytes))
    for seq_id in ("a", "padded", "b", "e"):
        store.create(seq_id)
    store.reserve(["a", "padded", "b"], 9)
    store.set_origin("padded", 2)
    store.commit(["a", "padded", "b"])
    store.reserve(["b"], 3)
    before = [store.statistics(), store.seq_ids, store.digest("a"), store.digest("padded")]
    call, message = refuse(store)[number]
    with pytest.raises((SequenceError, CacheFullError), match=message):
        call()
    store.check_integrity()
    after = [store.statistics(), store.seq_ids, store.digest("a"), store.digest("padded")]
    assert after == before
    assert len(refuse(store)) == 25


def test_errors_name_bytes() -> None:
    layout = small_layout(windows=(None,), state=False)
    store = SequenceStore(layout, FramePool(2, layout.frame_bytes))
    store.create("a")
    with pytest.raises(CacheFullError, match=f"3 frames \\({3 * layout.frame_bytes} bytes\\)"):
        store.reserve(["a"], 17)


def test_a_store_wants_a_pool_of_its_own() -> None:
    layout = small_layout()
    used = FramePool(4, layout.frame_bytes)
    used.allocate(1)
    for pool in (used, FramePool(4, 2 * layout.frame_bytes)):
        with pytest.raises(FrameError, match="pool of its own"):
            SequenceStore(layout, pool)


@pytest.mark.parametrize(
    "fault",
    [
        lambda store: store.pool.retain(store._roster.known("a").tables[0].held),
        lambda store: store._frames.pins.__setitem__(1, 5),
        lambda store: store._roster.known("a").tables[0].cut(0),
    ],
)
def test_integrity_sees_each_fault(fault) -> None:
    layout = small_layout(windows=(None,))
    store = SequenceStore(layout, FramePool(30, layout.frame_bytes))
    store.create("a")
    store.reserve(["a"], 9)
    store.commit(["a"])
    store.check_integrity()
    fault(store)
    with pytest.raises(FrameError):
        store.check_integrity()


def test_digest_depends_on_every_byte() -> None:
    made = shadowed(windows=(None,))
    seq_id = filled(made, 9)
    digest = made.store.digest(seq_id)
    frames = np.unique(made.store.frame_table([seq_id]).numpy())
    made.pool.frames[int(frames[0]), 0] ^= 1
    assert made.store.digest(seq_id) != digest


def exact_store(**settings) -> Shadowed:
    layout = small_layout(state=False, windows=(None,), recent=5, first=4)
    return Shadowed(layout, 200, history=0, **settings)


@pytest.mark.parametrize("lengths", [[200], [70, 1, 90], [3, 1, 1, 80, 2]])
def test_long_steps_hold_the_end_of_a_window_and_the_first_tokens(lengths: list[int]) -> None:
    made = exact_store()
    seq_id = made.create()
    for length in lengths:
        assert made.append([seq_id], [length])
        made.check()
    assert made.append([seq_id], [1])
    held = made.store.statistics().frames.by_kind
    by_kind = {lifetime.kind: lifetime for lifetime in made.layout.classes}
    num_tokens = made.store.num_tokens(seq_id)
    for kind in ("recent", "first"):
        assert held[kind] == by_kind[kind].frames_for(num_tokens)
        assert held[kind] <= -(-5 // by_kind[kind].tokens_per_frame) + 1
    assert made.store.need(1008) == made.store.need(504) + 504 // 8


def test_a_long_step_that_is_given_up_leaves_the_window_as_it_was() -> None:
    made = exact_store()
    seq_id = filled(made, 9)
    held = made.pool.num_held
    made.store.reserve([seq_id], 100)
    with pytest.raises(NotSupportedError, match="windows have room for the last of them only"):
        made.store.commit([seq_id], 50)
    made.store.commit([seq_id], 0)
    assert made.pool.num_held <= held
    made.check()
    assert made.append([seq_id], [2])
    made.check()


def test_first_rows_that_twins_share_are_copied_before_they_differ() -> None:
    """Where padding ends late, a fork has first rows to come."""
    made = exact_store()
    seq_id = filled(made, 10)
    made.store.set_origin(seq_id, 8)
    number = next(n for n, x in enumerate(made.layout.classes) if x.kind == "first")
    made.store.fork(seq_id, "twin")
    made.store.reserve([seq_id, "twin"], 1)
    ours, theirs = made.store.frame_table([seq_id, "twin"], number)[:, 0].tolist()
    assert ours != theirs
    made.store.commit([seq_id, "twin"])
    made.store.reserve([seq_id, "twin"], 2)
    made.store.commit([seq_id, "twin"])
    made.store.check_integrity()


def test_table_changes_tell_when_tables_are_to_be_looked_up_again() -> None:
    made = shadowed(windows=(None,), state=False)
    seq_id = filled(made, 9)
    (before,) = made.store.table_changes
    assert made.append([seq_id], [1])
    assert made.store.table_changes == [before]
    assert made.store.frame_table([seq_id]).shape[1] == 2
    made.copy_prefix(seq_id, 10)
    assert made.append([seq_id], [1])  # into a copy of the last frame
    assert made.store.table_changes == [before + 1]
    assert made.append([seq_id], [6])  # into a new frame
    assert made.store.table_changes == [before + 2]
