"""A store in numbers, and the check that its numbers agree with what its sequences hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import FrameError
from .frame_ledger import FRAME_MASK, FrameStatistics, Handles
from .held_frames import HeldFrames
from .layout import Layout
from .sequence import GONE, CachedSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """A pool in numbers.

    Attributes:
        frames: of the ledger.
        useful_bytes: rows of visible tokens and states, those in shared frames once.
        held_bytes: of held frames.
        internal_fragmentation: 1 - useful / held.
        running, parked: sequences.
        evicted: sequences evicted so far.
        copied_bytes: bytes of frames copied before a write, so far.
    """

    frames: FrameStatistics
    useful_bytes: int
    held_bytes: int
    internal_fragmentation: float
    running: int
    parked: int
    evicted: int
    copied_bytes: int


def store_statistics(
    layout: Layout, frames: HeldFrames, sequences: Iterable[CachedSequence], evicted: int
) -> StoreStatistics:
    sequences = list(sequences)
    useful = useful_bytes(layout, sequences)
    held = frames.pool.num_held * layout.frame_bytes
    parked = sum(sequence.parked for sequence in sequences)
    return StoreStatistics(
        frames=frames.pool.statistics(),
        useful_bytes=useful,
        held_bytes=held,
        internal_fragmentation=1 - useful / held if held else 0.0,
        running=len(sequences) - parked,
        parked=parked,
        evicted=evicted,
        copied_bytes=frames.copied_bytes,
    )


def useful_bytes(layout: Layout, sequences: Iterable[CachedSequence]) -> int:
    """Bytes of visible rows by frame, at most once per frame, and of distinct states."""
    best: dict[int, int] = {}
    for sequence in sequences:
        for number, lifetime in enumerate(layout.classes):
            T, first = lifetime.tokens_per_frame, sequence.first[number]
            rows = lifetime.num_rows(sequence.num_tokens, sequence.origin)
            for entry, handle in enumerate(sequence.tables[number].entries.tolist()):
                visible = min(rows, (entry + 1) * T) - max(first, entry * T)
                if handle >= 0 and visible > 0:
                    used = visible * lifetime.bytes_per_token
                    best[handle] = max(best.get(handle, 0), used)
        for state in (sequence.state, sequence.next_state, *sequence.checkpoints.values()):
            if state is not None:
                best[int(state[0])] = layout.state.useful_bytes
    return sum(best.values())


def check_accounts(
    layout: Layout,
    frames: HeldFrames,
    sequences: Iterable[CachedSequence],
    runs: Iterable[Handles],
) -> None:
    """Raise `FrameError` unless every reference and pin is that of exactly one sequence or run."""
    pool = frames.pool
    pool.check_integrity()
    references = np.zeros(pool.num_frames + 1, dtype=np.int64)
    pins = references.copy()
    for handles in runs:
        pool.references(handles)
        references[handles & FRAME_MASK] += 1
        pins[handles & FRAME_MASK] += 1
    for sequence in sequences:
        for handles in sequence.holdings():
            pool.references(handles)
            np.add.at(references, handles & FRAME_MASK, 1)
            if not sequence.parked:
                np.add.at(pins, handles & FRAME_MASK, 1)
        for table, lifetime, first in zip(
            sequence.tables, layout.classes, sequence.first, strict=True
        ):
            due = lifetime.table_length(sequence.num_tokens, sequence.origin)
            needed = table.entries[first // lifetime.tokens_per_frame : due]
            if len(table) < due or (needed == GONE).any():
                raise FrameError(f"sequence {sequence.seq_id!r} lacks frames for its tokens")
    if (references != pool.reference_counts()).any():
        raise FrameError("references of the pool are not those of the sequences")
    frames.check_pins(pins)
