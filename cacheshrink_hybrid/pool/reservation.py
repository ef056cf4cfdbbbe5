"""A step of several sequences: what it takes from the pool, worked out before anything is changed,
and then done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import CacheFullError
from .frame_ledger import FRAME_MASK, Handles
from .frame_pool import FramePool
from .held_frames import HeldFrames
from .layout import Layout
from .sequence import GONE, CachedSequence, FrameTable


@dataclass(slots=True)
class Step:
    """Changes that let each sequence take its new tokens.

    Attributes:
        slides: (sequence, class, first position still needed, frames that go).
        growths: (sequence, class, new entries that have no frame, new frames behind them).
        copies: (sequence, class, table entry): shared frames to copy before they are written to.
        new_states: sequences that get their first state, of zeros.
        moved_states: sequences whose state is shared or may be gone back to, so that the step
            writes a fresh one.
        num_needed: frames to allocate.
        num_freed: frames that the slides make free.
        num_unpinned: frames that no sequence refers to after the slides.
    """

    slides: list[tuple[CachedSequence, int, int, Handles]] = field(default_factory=list)
    growths: list[tuple[CachedSequence, int, int, int]] = field(default_factory=list)
    copies: list[tuple[CachedSequence, int, int]] = field(default_factory=list)
    new_states: list[CachedSequence] = field(default_factory=list)
    moved_states: list[CachedSequence] = field(default_factory=list)
    num_needed: int = 0
    num_freed: int = 0
    num_unpinned: int = 0

    @property
    def changed(self) -> set[int]:
        """Classes of which a sequence gets, swaps or loses frames."""
        slid = {number for _, number, _, going in self.slides if len(going)}
        grown = {number for _, number, *_ in self.growths}
        return slid | grown | {number for _, number, _ in self.copies}


def plan_step(
    layout: Layout,
    frames: HeldFrames,
    sequences: Sequence[CachedSequence],
    counts: Sequence[int],
    history: int,
    *,
    revocable: Sequence[bool],
    alone: bool = False,
) -> Step:
    """Work out the step in which sequence i takes `counts[i]` tokens.

    Args:
        history: tokens kept beyond every window, for rollbacks.
        revocable: of sequence i, whether its state before the step is to stay beside the new one.
        alone: as if no prefix were kept, so that nothing is shared with one.
    """
    step = Step()
    references = frames.pins if alone else frames.pool.reference_counts()
    dropped: Counter[int] = Counter()
    for sequence, count in zip(sequences, counts, strict=True):
        if not count:
            continue
        for number, lifetime in enumerate(layout.classes):
            T, table = lifetime.tokens_per_frame, sequence.tables[number]
            if lifetime.window is not None:
                needed = lifetime.first_needed(sequence.num_tokens + 1, history)
                if needed > sequence.first[number] or needed // T > table.num_gone:
                    going = table.leading(needed // T)
                    step.slides.append((sequence, number, needed, going))
                    dropped.update(frame for frame in (going & FRAME_MASK).tolist())
            length = lifetime.table_length(sequence.num_tokens + count, sequence.origin)
            if length > len(table):
                start = lifetime.first_stored(sequence.num_tokens, count, history)
                skipped = max(0, start // T - len(table)) if start > sequence.num_tokens else 0
                growth = length - len(table) - skipped
                step.growths.append((sequence, number, skipped, growth))
                step.num_needed += growth
    for frame, times in dropped.items():
        step.num_freed += int(references[frame]) == times
        step.num_unpinned += int(frames.pins[frame]) == times
    for sequence, count, stays in zip(sequences, counts, revocable, strict=True):
        if not count:
            continue
        for number, lifetime in enumerate(layout.classes):
            T, table = lifetime.tokens_per_frame, sequence.tables[number]
            last = lifetime.table_length(sequence.num_tokens + count, sequence.origin)
            begin = lifetime.num_rows(sequence.num_tokens, sequence.origin)
            if begin == lifetime.limit:
                continue
            for entry in range(begin // T, min(len(table), last)):
                frame = int(table.entries[entry]) & FRAME_MASK
                if references[frame] - dropped[frame] > 1:
                    dropped[frame] += 1
                    step.copies.append((sequence, number, entry))
        if layout.state.num_frames and sequence.next_state is None:
            if sequence.state is None:
                step.new_states.append(sequence)
                continue
            frame = int(sequence.state[0]) & FRAME_MASK
            if stays:
                step.moved_states.append(sequence)
            elif references[frame] - dropped[frame] > 1:
                dropped[frame] += 1
                step.moved_states.append(sequence)
    states = len(step.new_states) + len(step.moved_states)
    step.num_needed += len(step.copies) + states * layout.state.num_frames
    return step


def check_room(pool: FramePool, needed: int, available: int) -> None:
    """Refuse a step that needs more frames than there can be.

    Raises:
        CacheFullError: it does.
    """
    if needed > available:
        num_frames, frame_bytes = pool.num_frames, pool.frame_bytes
        raise CacheFullError(
            f"{needed} frames ({needed * frame_bytes} bytes) are needed, {available} of "
            f"{num_frames} are free or can be evicted; finish sequences, or give the cache more "
            f"memory than {num_frames * frame_bytes} bytes"
        )


def perform_step(layout: Layout, frames: HeldFrames, step: Step) -> None:
    """Do what was worked out; the frames that it needs are free, or become so by its slides."""
    slide_windows(layout, frames, step)
    for number, lifetime in enumerate(layout.classes):
        growths = []
        for sequence, at, skipped, growth in step.growths:
            if at == number:
                sequence.tables[number].extend(np.full(skipped, GONE, dtype=np.int64))
                growths.append((sequence.tables[number], growth))
        if growths:
            handles = frames.allocate(sum(n for _, n in growths), lifetime.name)
            _grow_tables(growths, handles)
        copies = [(s.tables[number], entry) for s, at, entry in step.copies if at == number]
        _own_frames(frames, copies, lifetime.name)
    size = layout.state.num_frames
    states = step.new_states + step.moved_states
    if states:
        handles = frames.allocate(size * len(states), "state").reshape(len(states), size)
        for sequence, fresh in zip(states, handles, strict=True):
            if sequence.state is None:
                sequence.state = fresh
            else:
                sequence.next_state = fresh
        frames.pool.zero(handles[: len(step.new_states)].reshape(-1))


def first_stored(layout: Layout, sequence: CachedSequence, history: int) -> list[int]:
    """Per lifetime class, position of the first pending token whose row is stored."""
    begin, count = sequence.num_tokens, sequence.pending
    return [lifetime.first_stored(begin, count, history) for lifetime in layout.classes]


def give_back(layout: Layout, frames: HeldFrames, sequence: CachedSequence) -> None:
    """Let go of what is beyond the committed tokens."""
    for table, lifetime in zip(sequence.tables, layout.classes, strict=True):
        frames.release(table.cut(lifetime.table_length(sequence.num_tokens, sequence.origin)))


def slide_windows(layout: Layout, frames: HeldFrames, step: Step) -> None:
    """Only let go of the tokens that have left their windows."""
    for sequence, number, needed, going in step.slides:
        tokens_per_frame = layout.classes[number].tokens_per_frame
        sequence.tables[number].drop_leading(needed // tokens_per_frame)
        sequence.first[number] = needed
        frames.release(going)


def _own_frames(frames: HeldFrames, entries: list[tuple[FrameTable, int]], kind: str) -> None:
    """Put a copy in the place of each of these entries, whose frames are shared."""
    if not entries:
        return
    fresh = frames.allocate(len(entries), kind)
    old = [
        table.replace(entry, handle)
        for (table, entry), handle in zip(entries, fresh.tolist(), strict=True)
    ]
    frames.copy(old, fresh)
    frames.release_each(old)


def _grow_tables(growths: list[tuple[FrameTable, int]], handles: Handles) -> None:
    """Deal out frames. Tables that grow alike get theirs in turns, so that a batch in step keeps
    one distance between neighbours, and can be read as one strided tensor."""
    counts = {count for _, count in growths}
    if len(counts) == 1:
        for column, (table, _) in zip(handles.reshape(-1, len(growths)).T, growths, strict=True):
            table.extend(column)
        return
    start = 0
    for table, count in growths:
        table.extend(handles[start : start + count])
        start += count
