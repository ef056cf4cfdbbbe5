"""What one sequence holds in the pool: frame tables, windows and states."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .frame_ledger import Handles

GONE = -1
NO_HANDLES: Handles = np.empty(0, dtype=np.int64)


class FrameTable:
    """Frames of one lifetime class of one sequence; entry i serves tokens [i * T, (i + 1) * T),
    and is -1 where these tokens have left the window, or were never stored.

    Attributes:
        num_gone: leading entries that are gone.
    """

    def __init__(self, handles: Handles = NO_HANDLES) -> None:
        self._entries = handles.copy()
        self._length = len(handles)
        self.num_gone = 0

    def __len__(self) -> int:
        return self._length

    @property
    def entries(self) -> Handles:
        """All entries, -1 where gone."""
        return self._entries[: self._length]

    @property
    def held(self) -> Handles:
        """Entries that are not gone."""
        return self.leading(self._length)

    def extend(self, handles: Handles) -> None:
        end = self._length + len(handles)
        if end > len(self._entries):
            larger = np.empty(max(8, end + end // 2), dtype=np.int64)
            larger[: self._length] = self.entries
            self._entries = larger
        self._entries[self._length : end] = handles
        self._length = end

    def replace(self, index: int, handle: int) -> int:
        """Put `handle` at `index`; returns the one that was there."""
        old = int(self._entries[index])
        self._entries[index] = handle
        return old

    def first_frames(self, count: int) -> FrameTable:
        """A table of the first `count` entries."""
        table = FrameTable(self._entries[: min(count, self._length)])
        table.num_gone = min(self.num_gone, len(table))
        return table

    def leading(self, count: int) -> Handles:
        """Held entries before entry `count`."""
        return _held(self._entries[self.num_gone : min(count, self._length)])

    def drop_leading(self, count: int) -> None:
        """Mark the entries before entry `count` as gone."""
        count = max(self.num_gone, min(count, self._length))
        self._entries[self.num_gone : count] = GONE
        self.num_gone = count

    def cut(self, count: int) -> Handles:
        """Shorten to `count` entries; returns the held ones that were cut off."""
        if count >= self._length:
            return NO_HANDLES
        cut = _held(self._entries[count : self._length])
        self._length = count
        self.num_gone = min(self.num_gone, count)
        return cut


def _held(entries: Handles) -> Handles:
    """A copy of those that are not gone."""
    return entries[entries != GONE]


@dataclass(slots=True)
class CachedSequence:
    """One sequence.

    Attributes:
        seq_id: the caller's name for it.
        tables: per lifetime class.
        first: per lifetime class, position of the first token from which on all are stored, as far
            as the class stores them.
        origin: position from which on classes with a limit count their tokens: of the first one
            that is not padding.
        num_tokens: committed tokens; the next one gets this position.
        pending: tokens that are reserved and not committed.
        state: frames of the recurrent state after `num_tokens` tokens; None without one.
        next_state: frames that the pending step writes the state to, if not over the old one.
        checkpoints: states kept at earlier positions, by number of tokens.
    """

    seq_id: Hashable
    tables: list[FrameTable]
    first: list[int]
    origin: int = 0
    num_tokens: int = 0
    pending: int = 0
    state: Handles | None = None
    next_state: Handles | None = None
    checkpoints: dict[int, Handles] = field(default_factory=dict)

    def holdings(self) -> Iterator[Handles]:
        """Every group of frames that this sequence has a reference to."""
        for table in self.tables:
            yield table.held
        for state in (self.state, self.next_state, *self.checkpoints.values()):
            if state is not None:
                yield state

    @property
    def num_held(self) -> int:
        """References to frames that this sequence has."""
        return sum(len(handles) for handles in self.holdings())
