"""The end of a step of one sequence: reserved tokens that count from now on."""

from __future__ import annotations

from ..errors import NotSupportedError, SequenceError
from .held_frames import HeldFrames
from .layout import Layout
from .reservation import first_stored, give_back
from .sequence import CachedSequence


def check_commit(layout: Layout, sequence: CachedSequence, count: int, history: int) -> None:
    """Raise unless `count` of the reserved tokens can be counted as stored.

    Raises:
        SequenceError: more than reserved.
        NotSupportedError: fewer, though a recurrent state has taken all, or the rows of the last
            tokens alone were kept.
    """
    if not 0 <= count <= sequence.pending:
        raise SequenceError(
            f"{count} tokens of sequence {sequence.seq_id!r} cannot be committed; "
            f"{sequence.pending} are reserved"
        )
    if layout.state.num_frames and count not in (0, sequence.pending):
        raise NotSupportedError(
            f"{count} of {sequence.pending} tokens cannot be committed: the recurrent "
            "state has taken all; reserve only what will be committed"
        )
    starts = first_stored(layout, sequence, history)
    if 0 < count < sequence.pending and any(at > sequence.num_tokens for at in starts):
        raise NotSupportedError(
            f"{count} of {sequence.pending} tokens cannot be committed: windows have room "
            "for the last of them only; reserve only what will be committed"
        )


def commit_tokens(
    layout: Layout, frames: HeldFrames, sequence: CachedSequence, count: int, history: int
) -> None:
    """Count reserved tokens as stored, which was checked to be possible, and forget the others."""
    if sequence.next_state is not None and count:
        assert sequence.state is not None
        frames.release(sequence.state)
        sequence.state, sequence.next_state = sequence.next_state, None
    if count:
        for number, start in enumerate(first_stored(layout, sequence, history)):
            if start > sequence.num_tokens:
                sequence.first[number] = start
    sequence.num_tokens += count
    if count < sequence.pending:
        give_back(layout, frames, sequence)
    sequence.pending = 0
