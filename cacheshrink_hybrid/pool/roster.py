"""Which sequences there are, by their names, and refusals of names that do not fit."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from ..errors import SequenceError
from .sequence import CachedSequence, FrameTable


class Roster:
    """Sequences by id.

    Args:
        num_classes: lifetime classes of the layout, one frame table each.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._sequences: dict[Hashable, CachedSequence] = {}

    def __contains__(self, seq_id: Hashable) -> bool:
        return seq_id in self._sequences

    def __iter__(self) -> Iterator[CachedSequence]:
        return iter(self._sequences.values())

    def __len__(self) -> int:
        return len(self._sequences)

    def new(self, seq_id: Hashable) -> CachedSequence:
        """An empty sequence of this name, which nobody may have.

        It is not in the roster yet; see `add`.
        """
        if seq_id in self._sequences:
            raise SequenceError(f"sequence {seq_id!r} exists already; free it or choose another id")
        return CachedSequence(
            seq_id=seq_id,
            tables=[FrameTable() for _ in range(self._num_classes)],
            first=[0] * self._num_classes,
        )

    def add(self, sequence: CachedSequence) -> None:
        self._sequences[sequence.seq_id] = sequence

    def forget(self, sequence: CachedSequence) -> None:
        del self._sequences[sequence.seq_id]

    def known(self, seq_id: Hashable) -> CachedSequence:
        sequence = self._sequences.get(seq_id)
        if sequence is None:
            raise SequenceError(
                f"sequence {seq_id!r} is unknown; it was never created, or was freed"
            )
        return sequence

    def ready(self, seq_id: Hashable) -> CachedSequence:
        """A known sequence without a pending step."""
        sequence = self.known(seq_id)
        if sequence.pending:
            raise SequenceError(
                f"sequence {seq_id!r} has {sequence.pending} reserved tokens; commit them (or "
                "commit 0 of them) first"
            )
        return sequence

    def distinct(self, seq_ids: Sequence[Hashable]) -> list[CachedSequence]:
        """Known sequences, none of them named twice."""
        if len(set(seq_ids)) != len(seq_ids):
            raise SequenceError(f"sequences {list(seq_ids)} are to be named once each")
        return [self.known(seq_id) for seq_id in seq_ids]

    def all_ready(self, seq_ids: Sequence[Hashable]) -> list[CachedSequence]:
        """Sequences without a pending step, none of them named twice."""
        self.distinct(seq_ids)
        return [self.ready(seq_id) for seq_id in seq_ids]
