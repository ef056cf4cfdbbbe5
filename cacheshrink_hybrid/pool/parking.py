"""Finished sequences that are kept for reuse, as long as nobody needs their frames."""

from __future__ import annotations

from collections.abc import Hashable

from ..errors import CacheFullError, SequenceError
from .eviction import EvictionQueue
from .held_frames import HeldFrames
from .layout import Layout
from .reservation import give_back
from .roster import Roster
from .sequence import CachedSequence


class Parking:
    """Parks sequences, wakes them, and evicts them for their frames.

    Args:
        layout, frames, roster: of the store.
        policy: which parked sequence is evicted first; see `eviction`.

    Attributes:
        evicted: sequences evicted so far.
    """

    def __init__(self, layout: Layout, frames: HeldFrames, roster: Roster, policy: str) -> None:
        self.layout = layout
        self.frames = frames
        self.roster = roster
        self.evicted = 0
        self._queue = EvictionQueue(policy)

    def park(self, sequence: CachedSequence, saved_flops: float) -> None:
        """Keep a running sequence without what was reserved for a step."""
        give_back(self.layout, self.frames, sequence)
        sequence.pending = 0
        if sequence.next_state is not None:
            self.frames.release(sequence.next_state)
            sequence.next_state = None
        self.roster.touch(sequence)
        sequence.saved_flops = saved_flops
        for handles in sequence.holdings():
            self.frames.unpin(handles)
        sequence.parked = True
        self._queue.push(sequence, sequence.num_held * self.layout.frame_bytes)

    def wake(self, sequence: CachedSequence) -> None:
        """Let a parked sequence run on."""
        if not sequence.parked:
            raise SequenceError(
                f"sequence {sequence.seq_id!r} is running already; only parked ones wake"
            )
        self._queue.discard(sequence.seq_id)
        sequence.parked = False
        for handles in sequence.holdings():
            self.frames.pin(handles)
        self.roster.touch(sequence)

    def drop(self, sequence: CachedSequence) -> None:
        """Give back everything that a sequence holds, running or parked, and forget it."""
        self._queue.discard(sequence.seq_id)
        release = self.frames.pool.release if sequence.parked else self.frames.release
        for handles in list(sequence.holdings()):
            release(handles)
        self.roster.forget(sequence)

    def evict(self) -> Hashable:
        """Drop the sequence that the policy names, and return its id."""
        seq_id = self._queue.pop()
        self.drop(self.roster.known(seq_id))
        self.evicted += 1
        return seq_id

    def check(self, needed: int, available: int) -> None:
        """Refuse what needs more frames than there can be."""
        if needed > available:
            num_frames, frame_bytes = self.frames.pool.num_frames, self.layout.frame_bytes
            raise CacheFullError(
                f"{needed} frames ({needed * frame_bytes} bytes) are needed, {available} of "
                f"{num_frames} are free or can be evicted; finish sequences, or give the cache "
                f"more memory than {num_frames * frame_bytes} bytes"
            )
