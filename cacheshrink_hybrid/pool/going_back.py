"""Sequences that forget their last tokens."""

from __future__ import annotations

from ..errors import NotSupportedError, SequenceError
from .held_frames import HeldFrames
from .layout import Layout
from .sequence import CachedSequence


def check_resume(layout: Layout, sequence: CachedSequence, position: int) -> None:
    """Raise unless the token at `position` could come next, after removing those from there on.

    Raises:
        SequenceError: there are fewer tokens.
        NotSupportedError: tokens that it sees have left a window, or no state is kept there.
    """
    if not 0 <= position <= sequence.num_tokens:
        raise SequenceError(
            f"sequence {sequence.seq_id!r} has {sequence.num_tokens} tokens, so it cannot go on "
            f"at {position}"
        )
    for lifetime, first in zip(layout.classes, sequence.first, strict=True):
        if position and lifetime.first_needed(position + 1) < first:
            raise NotSupportedError(
                f"sequence {sequence.seq_id!r} cannot go on at {position}: tokens before {first} "
                f"have left the window of {lifetime.window}; keep more history, or compute the "
                "sequence again"
            )
    kept = (0, sequence.num_tokens, *sequence.checkpoints)
    if layout.state.num_frames and position not in kept:
        raise NotSupportedError(
            f"sequence {sequence.seq_id!r} cannot go on at {position}: its recurrent state is kept "
            f"at {sorted(set(kept))} only; set checkpoints, or compute it again"
        )


def cut_tail(layout: Layout, frames: HeldFrames, sequence: CachedSequence, num_tokens: int) -> None:
    """Go back to `num_tokens` tokens, which was checked to be possible."""
    for number, lifetime in enumerate(layout.classes):
        keep = lifetime.table_length(num_tokens, sequence.origin)
        frames.release(sequence.tables[number].cut(keep))
        sequence.first[number] = min(sequence.first[number], num_tokens)
    if not num_tokens:
        sequence.first = [0] * len(sequence.first)
        sequence.origin = 0
    if layout.state.num_frames and num_tokens != sequence.num_tokens:
        old, sequence.state = sequence.state, None
        if num_tokens:
            sequence.state = sequence.checkpoints[num_tokens]
            frames.retain(sequence.state)
        if old is not None:
            frames.release(old)
        for position in [p for p in sequence.checkpoints if p > num_tokens]:
            frames.release(sequence.checkpoints.pop(position))
    sequence.num_tokens = num_tokens
