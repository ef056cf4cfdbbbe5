"""What a step of several sequences takes from the pool, worked out before anything is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .frame_ledger import FRAME_MASK, FrameLedger, Handles
from .layout import Layout
from .sequence import CachedSequence


@dataclass(slots=True)
class Step:
    """Changes that let each sequence take its new tokens.

    Attributes:
        slides: (sequence, class, first position still needed, frames that go).
        growths: (sequence, class, new frames).
        copies: (sequence, class, table entry): shared frames to copy before they are written to.
        new_states: sequences that get their first state, of zeros.
        moved_states: sequences whose state is shared, so that the step writes a fresh one.
        num_needed: frames to allocate.
        num_freed: frames that the slides make free.
        num_unpinned: frames that no running sequence refers to after the slides.
    """

    slides: list[tuple[CachedSequence, int, int, Handles]] = field(default_factory=list)
    growths: list[tuple[CachedSequence, int, int]] = field(default_factory=list)
    copies: list[tuple[CachedSequence, int, int]] = field(default_factory=list)
    new_states: list[CachedSequence] = field(default_factory=list)
    moved_states: list[CachedSequence] = field(default_factory=list)
    num_needed: int = 0
    num_freed: int = 0
    num_unpinned: int = 0


def plan_step(
    layout: Layout,
    ledger: FrameLedger,
    pins: np.ndarray,
    sequences: Sequence[CachedSequence],
    counts: Sequence[int],
    history: int,
) -> Step:
    """Work out the step in which sequence i takes `counts[i]` tokens.

    Args:
        pins: references by running sequences, per frame.
        history: tokens kept beyond every window, for rollbacks.
    """
    step = Step()
    dropped: Counter[int] = Counter()
    for sequence, count in zip(sequences, counts, strict=True):
        if not count:
            continue
        for number, lifetime in enumerate(layout.classes):
            T, table = lifetime.tokens_per_frame, sequence.tables[number]
            if lifetime.window is not None:
                needed = lifetime.first_needed(sequence.num_tokens + 1, history)
                if needed > sequence.first[number]:
                    going = table.leading(needed // T).copy()
                    step.slides.append((sequence, number, needed, going))
                    dropped.update(frame for frame in (going & FRAME_MASK).tolist())
            growth = -(-(sequence.num_tokens + count) // T) - len(table)
            if growth > 0:
                step.growths.append((sequence, number, growth))
                step.num_needed += growth
    for frame, times in dropped.items():
        step.num_freed += int(ledger.references_of(frame)) == times
        step.num_unpinned += int(pins[frame]) == times
    for sequence, count in zip(sequences, counts, strict=True):
        if not count:
            continue
        for number, lifetime in enumerate(layout.classes):
            T, table = lifetime.tokens_per_frame, sequence.tables[number]
            last = min(len(table), -(-(sequence.num_tokens + count) // T))
            for entry in range(sequence.num_tokens // T, last):
                frame = int(table.entries[entry]) & FRAME_MASK
                if ledger.references_of(frame) - dropped[frame] > 1:
                    dropped[frame] += 1
                    step.copies.append((sequence, number, entry))
        if layout.state.num_frames and sequence.next_state is None:
            if sequence.state is None:
                step.new_states.append(sequence)
                continue
            frame = int(sequence.state[0]) & FRAME_MASK
            if ledger.references_of(frame) - dropped[frame] > 1:
                dropped[frame] += 1
                step.moved_states.append(sequence)
    states = len(step.new_states) + len(step.moved_states)
    step.num_needed += len(step.copies) + states * layout.state.num_frames
    return step
