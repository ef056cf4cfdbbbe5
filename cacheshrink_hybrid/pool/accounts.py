"""A store in numbers, and the check that its numbers agree with what its sequences hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import FrameError
from .frame_ledger import FRAME_MASK, FrameStatistics, Handles
from .held_frames import HeldFrames
from .layout import Layout
from .lifetime import LifetimeClass
from .prefixes.node import PrefixNode
from .prefixes.tree import PrefixTree
from .sequence import GONE, CachedSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """A pool in numbers.

    Attributes:
        frames: of the ledger.
        useful_bytes: rows of visible tokens and states, those in shared frames once.
        held_bytes: of held frames.
        internal_fragmentation: 1 - useful / held.
        num_sequences: with frames or without.
        copied_bytes: bytes of frames copied before a write, so far.
    """

    frames: FrameStatistics
    useful_bytes: int
    held_bytes: int
    internal_fragmentation: float
    num_sequences: int
    copied_bytes: int


def store_statistics(
    layout: Layout,
    frames: HeldFrames,
    sequences: Iterable[CachedSequence],
    prefixes: PrefixTree,
) -> StoreStatistics:
    sequences = list(sequences)
    useful = useful_bytes(layout, sequences, prefixes)
    held = frames.pool.num_held * layout.frame_bytes
    return StoreStatistics(
        frames=frames.pool.statistics(),
        useful_bytes=useful,
        held_bytes=held,
        internal_fragmentation=1 - useful / held if held else 0.0,
        num_sequences=len(sequences),
        copied_bytes=frames.copied_bytes,
    )


def useful_bytes(layout: Layout, sequences: Iterable[CachedSequence], prefixes: PrefixTree) -> int:
    """Bytes of visible rows by frame, at most once per frame, and of distinct states."""
    best: dict[int, int] = {}

    def see(lifetime: LifetimeClass, first: int, end: int, entry: int, frames: Handles) -> None:
        """Rows [first, end) in frames of which the first one is of table entry `entry`."""
        T = lifetime.tokens_per_frame
        for at, handle in enumerate(frames.tolist(), start=entry):
            visible = min(end, (at + 1) * T) - max(first, at * T)
            if handle >= 0 and visible > 0:
                best[handle] = max(best.get(handle, 0), visible * lifetime.bytes_per_token)

    states: list[Handles | None] = []
    kept: list[Handles | None] = []
    for sequence in sequences:
        for table, lifetime, first in zip(
            sequence.tables, layout.classes, sequence.first, strict=True
        ):
            end = lifetime.num_rows(sequence.num_tokens, sequence.origin)
            see(lifetime, first, end, 0, table.entries)
        states += [sequence.state, sequence.next_state, *sequence.checkpoints.values()]
    for node in prefixes:
        for rows, lifetime in zip(node.rows, layout.classes, strict=True):
            entry = rows.first // lifetime.tokens_per_frame
            see(lifetime, rows.first, lifetime.num_rows(node.end), entry, rows.frames)
        (states if prefixes.codes is None else kept).append(node.state)
    total = sum(best.values())
    for found, state_map in ((states, layout.state), (kept, prefixes.kept_state)):
        distinct = {int(state[0]) for state in found if state is not None}
        total += len(distinct) * state_map.useful_bytes
    return total


def check_accounts(
    layout: Layout,
    frames: HeldFrames,
    sequences: Iterable[CachedSequence],
    runs: Iterable[Handles],
    prefixes: Iterable[PrefixNode],
) -> None:
    """Raise `FrameError` unless every reference is that of exactly one sequence, run or prefix, and
    every pin that of one of the former two."""
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
            np.add.at(pins, handles & FRAME_MASK, 1)
        for table, lifetime, first in zip(
            sequence.tables, layout.classes, sequence.first, strict=True
        ):
            due = lifetime.table_length(sequence.num_tokens, sequence.origin)
            needed = table.entries[first // lifetime.tokens_per_frame : due]
            if len(table) < due or (needed == GONE).any():
                raise FrameError(f"sequence {sequence.seq_id!r} lacks frames for its tokens")
    for node in prefixes:
        for handles in node.holdings():
            pool.references(handles)
            np.add.at(references, handles & FRAME_MASK, 1)
        _check_edge(layout, node)
    if (references != pool.reference_counts()).any():
        raise FrameError("references of the pool are not those of sequences and prefixes")
    frames.check_pins(pins)


def _check_edge(layout: Layout, node: PrefixNode) -> None:
    """Raise `FrameError` unless an edge has the frames of its rows, and lies where it says."""
    for rows, lifetime in zip(node.rows, layout.classes, strict=True):
        end = lifetime.num_rows(node.end)
        due = lifetime.table_length(node.end) - rows.first // lifetime.tokens_per_frame
        if rows.first >= end or lifetime.num_rows(node.start) == end:
            due = 0
        if len(rows.frames) != due or rows.first < lifetime.frame_start(node.start):
            raise FrameError(f"the edge [{node.start}, {node.end}) lacks frames for its tokens")
    behind = node.parent.end if node.parent is not None else -1
    if behind != node.start or not len(node.tokens):
        raise FrameError(f"the edge [{node.start}, {node.end}) does not follow on {behind}")
    for token, child in node.children.items():
        if child.parent is not node or int(child.tokens[0]) != token:
            raise FrameError(f"what follows on {node.end} by token {token} is not there")
