"""Frames that are given out and taken back and hold nothing, for what only counts them."""

from __future__ import annotations

import torch

from .frame_ledger import FrameLedger, Handles
from .frame_pool import FramePool
from .layout import Layout
from .prefixes.state_codes import StateCodes
from .store import SequenceStore


class CountedFrames(FramePool):
    """A pool without bytes."""

    def __init__(self, num_frames: int, frame_bytes: int) -> None:
        FrameLedger.__init__(self, num_frames)
        self.frame_bytes = frame_bytes
        self.poison = False
        self.arena = torch.empty(0, dtype=torch.uint8)

    def zero(self, handles: Handles) -> None: ...

    def copy(self, sources: Handles, targets: Handles) -> None: ...


class CountedCodes(StateCodes):
    """Codes of states that take the frames of others and write nothing."""

    def __init__(self, codes: StateCodes) -> None:
        self.map, self.digest = codes.map, codes.digest

    def encode(self, pool: FramePool, live: Handles, kept: Handles) -> None: ...

    def decode(self, pool: FramePool, kept: Handles, live: Handles) -> None: ...


def counted_store(
    layout: Layout,
    num_frames: int,
    *,
    policy: str,
    history: int = 0,
    codes: StateCodes | None = None,
) -> SequenceStore:
    """A store that takes frames as another one of these settings would, and keeps no bytes."""
    return SequenceStore(
        layout,
        CountedFrames(num_frames, layout.frame_bytes),
        history=history,
        policy=policy,
        codes=None if codes is None else CountedCodes(codes),
    )


def counted_twin(store: SequenceStore) -> SequenceStore:
    """A store that takes frames as this one does, by its policy, and keeps no bytes."""
    prefixes = store.prefixes
    twin = counted_store(
        store.layout,
        store.pool.num_frames,
        policy=prefixes.queue.policy.name,
        history=store.history,
        codes=prefixes.codes,
    )

    def seconds(begin: int, end: int) -> float:
        """As the store has them, which may know better later."""
        return prefixes.seconds(begin, end)

    twin.prefixes.seconds = seconds
    return twin
