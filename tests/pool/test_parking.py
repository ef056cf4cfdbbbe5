"""Parked sequences wait for reuse, and go when their frames are needed."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.errors import CacheFullError, SequenceError
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.held_frames import HeldFrames
from cacheshrink_hybrid.pool.parking import Parking
from cacheshrink_hybrid.pool.reservation import perform_step, plan_step
from cacheshrink_hybrid.pool.roster import Roster
from cacheshrink_hybrid.pool.sequence import CachedSequence
from tests.pool.shadow import small_layout

LAYOUT = small_layout(windows=(None,), state=False)
TOKENS = LAYOUT.classes[0].tokens_per_frame


class Lot:
    """A pool of 6 frames, with sequences of some frames each."""

    def __init__(self, policy: str = "lru") -> None:
        self.frames = HeldFrames(FramePool(6, LAYOUT.frame_bytes))
        self.roster = Roster(len(LAYOUT.classes))
        self.parking = Parking(LAYOUT, self.frames, self.roster, policy)

    def sequence(self, seq_id: int, num_frames: int, priority: float = 0.0) -> CachedSequence:
        sequence = self.roster.new(seq_id, priority)
        self.roster.add(sequence)
        step = plan_step(LAYOUT, self.frames, [sequence], [num_frames * TOKENS], 0)
        perform_step(LAYOUT, self.frames, step)
        sequence.num_tokens = num_frames * TOKENS
        self.roster.touch(sequence)
        return sequence


def test_parked_frames_are_held_until_they_are_needed() -> None:
    lot = Lot()
    first, second = lot.sequence(0, 2), lot.sequence(1, 3)
    assert lot.frames.num_evictable == 0
    lot.parking.park(first, 0.0)
    assert lot.frames.num_evictable == 2 and lot.frames.pool.num_free == 1
    lot.parking.check(3, lot.frames.pool.num_free + lot.frames.num_evictable)
    assert first.seq_id in lot.roster
    assert lot.parking.evict() == first.seq_id
    assert first.seq_id not in lot.roster and lot.frames.pool.num_free == 3
    assert lot.parking.evicted == 1
    with pytest.raises(CacheFullError, match=r"4 frames .* are needed, 3 of 6 are free"):
        lot.parking.check(4, lot.frames.pool.num_free + lot.frames.num_evictable)
    assert second.seq_id in lot.roster


def test_who_wakes_is_not_evicted() -> None:
    lot = Lot("priority")
    low, high = lot.sequence(0, 2, priority=1.0), lot.sequence(1, 2, priority=2.0)
    lot.parking.park(high, 0.0)
    lot.parking.park(low, 0.0)
    lot.parking.wake(low)
    with pytest.raises(SequenceError, match="is running already"):
        lot.parking.wake(low)
    assert lot.frames.num_evictable == 2
    assert lot.parking.evict() == 1
    lot.parking.drop(low)
    assert lot.frames.pool.num_held == 0 and lot.frames.num_pinned == 0
