"""Sequences that share frames: copies of a prefix, and beams that change places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .frame_ledger import Handles
from .held_frames import HeldFrames
from .layout import Layout
from .sequence import CachedSequence, FrameTable


def share_prefix(
    layout: Layout,
    frames: HeldFrames,
    origin: CachedSequence,
    twin: CachedSequence,
    num_tokens: int,
) -> None:
    """Let the empty sequence `twin` refer to the first `num_tokens` tokens of `origin`, at which
    it was checked that a sequence can go on. Copies nothing."""
    twin.num_tokens = num_tokens
    twin.first = [min(first, num_tokens) for first in origin.first]
    twin.tables = [
        table.first_frames(-(-num_tokens // lifetime.tokens_per_frame))
        for table, lifetime in zip(origin.tables, layout.classes, strict=True)
    ]
    if num_tokens and layout.state.num_frames:
        at_end = num_tokens == origin.num_tokens
        twin.state = origin.state if at_end else origin.checkpoints[num_tokens]
        twin.checkpoints = {
            position: handles
            for position, handles in origin.checkpoints.items()
            if position <= num_tokens
        }
    for handles in twin.holdings():
        frames.retain(handles)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a sequence without a pending step remembers."""

    tables: list[FrameTable]
    first: list[int]
    num_tokens: int
    state: Handles | None
    checkpoints: dict[int, Handles]

    def holdings(self) -> Iterator[Handles]:
        """Every group of frames in it."""
        for table in self.tables:
            yield table.held
        for state in (self.state, *self.checkpoints.values()):
            if state is not None:
                yield state

    @classmethod
    def of(cls, sequence: CachedSequence) -> _Content:
        return cls(
            [table.first_frames(len(table)) for table in sequence.tables],
            list(sequence.first),
            sequence.num_tokens,
            sequence.state,
            dict(sequence.checkpoints),
        )

    def give_to(self, sequence: CachedSequence) -> None:
        sequence.tables = [table.first_frames(len(table)) for table in self.tables]
        sequence.first, sequence.num_tokens = list(self.first), self.num_tokens
        sequence.state, sequence.next_state = self.state, None
        sequence.checkpoints = dict(self.checkpoints)


def permute(
    frames: HeldFrames, sequences: Sequence[CachedSequence], sources: Sequence[int]
) -> None:
    """Let sequence i go on from what sequence `sources[i]` holds, for all i at once."""
    before = [_Content.of(sequence) for sequence in sequences]
    taken = [i for i, source in enumerate(sources) if source != i]
    for i in taken:
        for handles in before[sources[i]].holdings():
            frames.retain(handles)
    given_up = [handles for i in taken for handles in sequences[i].holdings()]
    for i in taken:
        before[sources[i]].give_to(sequences[i])
    for handles in given_up:
        frames.release(handles)
