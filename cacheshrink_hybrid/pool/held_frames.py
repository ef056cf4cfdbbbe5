"""References of sequences to frames, counted apart from those of prefixes.

A frame is *pinned* while a sequence refers to it. Held frames that nobody pins belong to prefixes
alone, so evicting all of these would make exactly them free.
"""

from __future__ import annotations

import numpy as np

from ..errors import FrameError
from .frame_ledger import FRAME_MASK, Handles
from .frame_pool import FramePool


class HeldFrames:
    """Takes and gives back frames of a pool for sequences.

    Attributes:
        pins: references by sequences, per frame, int32.
        num_pinned: frames with at least one.
        copied_bytes: bytes of frames copied before a write, so far.
    """

    def __init__(self, pool: FramePool) -> None:
        self.pool = pool
        self.pins = np.zeros(pool.num_frames + 1, dtype=np.int32)
        self.num_pinned = 0
        self.copied_bytes = 0

    @property
    def num_evictable(self) -> int:
        """Frames that evicting every prefix would make free."""
        return self.pool.num_held - self.num_pinned

    def allocate(self, count: int, kind: str) -> Handles:
        handles = self.pool.allocate(count, kind)
        self.pin(handles)
        return handles

    def allocate_run(self, count: int, kind: str) -> Handles:
        """Neighbouring frames."""
        handles = self.pool.allocate_run(count, kind)
        self.pin(handles)
        return handles

    def retain(self, handles: Handles) -> None:
        """One more reference of a sequence."""
        self.pool.retain(handles)
        self.pin(handles)

    def release(self, handles: Handles) -> None:
        """Give back references of a sequence."""
        if len(handles):
            self.unpin(handles)
            self.pool.release(handles)

    def release_each(self, handles: list[int]) -> None:
        """The same for handles among which a frame may come more than once."""
        for handle in handles:
            self.release(np.array([handle], dtype=np.int64))

    def copy(self, sources: list[int], targets: Handles) -> None:
        """Copy whole frames, and count the bytes."""
        self.pool.copy(np.array(sources, dtype=np.int64), targets)
        self.copied_bytes += len(sources) * self.pool.frame_bytes

    def pin(self, handles: Handles) -> None:
        if len(self.pins) <= self.pool.num_frames:
            grown = np.zeros(self.pool.num_frames + 1, dtype=np.int32)
            grown[: len(self.pins)] = self.pins
            self.pins = grown
        frames = handles & FRAME_MASK
        pins = self.pins[frames] + 1
        self.pins[frames] = pins
        self.num_pinned += int(np.count_nonzero(pins == 1))

    def unpin(self, handles: Handles) -> None:
        frames = handles & FRAME_MASK
        pins = self.pins[frames] - 1
        self.pins[frames] = pins
        self.num_pinned -= len(pins) - int(np.count_nonzero(pins))

    def check_pins(self, pins: np.ndarray) -> None:
        """Raise `FrameError` unless the pins are these, (1 + num_frames,)."""
        counted = np.zeros_like(pins)
        counted[: len(self.pins)] = self.pins
        if (pins != counted).any() or self.num_pinned != (pins > 0).sum():
            raise FrameError("pins are not those of the sequences")
