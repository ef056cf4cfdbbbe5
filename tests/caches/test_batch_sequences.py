"""Sequences of a batch: frames for their tokens, sharing, and going back."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.caches.batch_sequences import BatchSequences, frames_allowed
from cacheshrink_hybrid.errors import CacheFullError, NotSupportedError
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.pool.shadow import small_layout

TOKENS = 8
"""Of a frame."""


def batch_of(size: int, num_frames: int = 3, **settings) -> BatchSequences:
    windows = settings.pop("windows", (None,))
    layout = small_layout(windows=windows, state=False)
    assert all(lifetime.tokens_per_frame == TOKENS for lifetime in layout.classes)
    batch = BatchSequences(
        SequenceStore(layout, FramePool(num_frames, layout.frame_bytes)), **settings
    )
    batch.create(size)
    return batch


def lengths(batch: BatchSequences) -> list[int]:
    return [batch.store.num_tokens(seq_id) for seq_id in batch.ids]


def test_room_is_made_once_and_the_pool_grows() -> None:
    batch = batch_of(2)
    batch.make_room(2, 5)
    batch.make_room(2, 5)
    assert lengths(batch) == [5, 5]
    before = batch.store.pool.num_frames
    batch.make_room(2, 3 * TOKENS)
    assert lengths(batch) == [3 * TOKENS] * 2
    assert batch.store.pool.num_frames > before
    batch.store.check_integrity()


def test_another_batch_is_refused() -> None:
    batch = batch_of(2)
    with pytest.raises(NotSupportedError, match="holds 2 sequences, and 3 were fed"):
        batch.make_room(3, 1)


def test_growth_ends_at_the_limit() -> None:
    frame_bytes = small_layout(windows=(None,), state=False).frame_bytes
    batch = batch_of(2, max_bytes=10 * frame_bytes)
    batch.append(2 * TOKENS)
    assert batch.store.pool.num_frames == 9  # and the sink
    batch.append(2 * TOKENS)
    with pytest.raises(CacheFullError, match=rf"may take {10 * frame_bytes}"):
        batch.append(2 * TOKENS)
    assert lengths(batch) == [4 * TOKENS] * 2
    assert frames_allowed(9, 100, None, 9) == 9
    assert frames_allowed(9, 100, 801, 5) == 7
    with pytest.raises(CacheFullError, match="needs 900 bytes and may take 801"):
        frames_allowed(9, 100, 801, 8)


def test_rows_of_the_batch_share_frames() -> None:
    batch = batch_of(2, num_frames=8)
    batch.append(TOKENS)
    held = batch.store.pool.num_held
    before = list(batch.ids)
    batch.take([1, 1, 0])
    assert len(batch.ids) == 3 and not set(batch.ids) & set(before)
    assert batch.store.pool.num_held == held
    assert set(batch.store.seq_ids) == set(batch.ids)
    batch.free()
    assert batch.ids == [] and batch.store.pool.num_held == 0


@pytest.mark.parametrize("keeps_all", [True, False])
def test_going_back(keeps_all: bool) -> None:
    batch = batch_of(2, num_frames=20, windows=(TOKENS,))
    batch.append(TOKENS)
    if keeps_all:
        batch.keep_all()
    for _ in range(3 * TOKENS):
        batch.append(1)
    assert batch.can_go_back(2 * TOKENS) == keeps_all
    if not keeps_all:
        return
    batch.go_back(3 * TOKENS - 1)
    assert lengths(batch) == [3 * TOKENS - 1] * 2
    # What no window needs any more has gone with what was taken back.
    assert not batch.can_go_back(TOKENS)
    for _ in range(2 * TOKENS):
        batch.append(1)
    assert batch.can_go_back(3 * TOKENS)
