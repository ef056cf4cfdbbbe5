"""An edge of the tree of prefixes, with the node at its end: what the pool holds of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frame_ledger import Handles
from ..lifetime import LifetimeClass
from ..sequence import NO_HANDLES, CachedSequence

Tokens = NDArray[np.int64]


@dataclass(slots=True)
class EdgeRows:
    """Rows of one lifetime class along an edge.

    An edge that begins within a frame has a frame of its own there, which also holds the rows of
    its predecessors' tokens in that frame; the frame in which it ends may go on with other tokens.

    Attributes:
        first: row from which on all, up to the end of the edge, are in these frames. The first row
            of the frame in which the edge begins, unless a window had let go of more.
        frames: of the rows from `first` on.
    """

    first: int
    frames: Handles = field(default_factory=lambda: NO_HANDLES)

    def first_on_path(self, lifetime: LifetimeClass, start: int, before: int) -> int:
        """The same of all rows on the path that ends with this edge.

        Args:
            start: tokens before the edge.
            before: the same of the path before.
        """
        begin = lifetime.frame_start(start)
        return self.first if self.first > begin else min(begin, before)


@dataclass(slots=True, eq=False)
class PrefixNode:
    """An edge and the node at its end.

    Attributes:
        tokens: along the edge.
        end: tokens from the root to here.
        rows: per lifetime class.
        state: frames of the recurrent state after `end` tokens; None if there is none.
        parent, children: nodes before and behind; these by the first token of their edges.
        kind: what it was kept for, see `keeper`.
        priority, created, last_use, uses, saved_seconds, odds, floor: what eviction
            policies look at.
        outcomes: what became of nodes behind it, see `odds`.
        lost_state: it had a state, which was evicted.
        lost_children: first tokens of edges behind that were evicted.
    """

    tokens: Tokens
    end: int
    rows: list[EdgeRows]
    state: Handles | None = None
    parent: PrefixNode | None = None
    children: dict[int, PrefixNode] = field(default_factory=dict)
    kind: str = ""
    priority: float = 0.0
    created: int = 0
    last_use: int = 0
    uses: int = 0
    saved_seconds: float = 0.0
    odds: float = 0.5
    floor: float = 0.0
    moment: float = 0.0
    outcomes: dict[tuple[str, int, bool], list[float]] = field(default_factory=dict)
    lost_state: bool = False
    lost_children: set[int] = field(default_factory=set)

    @property
    def start(self) -> int:
        """Tokens before the edge."""
        return self.end - len(self.tokens)

    def path(self) -> list[PrefixNode]:
        """The nodes on the way here, the root excluded."""
        nodes: list[PrefixNode] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the nodes around it, which the tree links again: copying would go as deep as
        conversations are long."""
        names = {entry.name for entry in fields(self)} - {"parent", "children"}
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.parent, self.children = None, {}

    def holdings(self) -> Iterator[Handles]:
        """Every group of frames that this node has a reference to."""
        for rows in self.rows:
            yield rows.frames
        if self.state is not None:
            yield self.state


def rows_of(
    lifetime: LifetimeClass, number: int, sequence: CachedSequence, start: int, end: int
) -> EdgeRows:
    """What a sequence has of an edge [start, end), in lifetime class `number`; of a window, what is
    seen from its end."""
    begin = lifetime.frame_start(start)
    if lifetime.num_rows(start) == lifetime.num_rows(end):
        return EdgeRows(begin)
    first = min(max(sequence.first[number], begin, lifetime.first_needed(end + 1)), end)
    if first == end:
        return EdgeRows(first)
    entries = sequence.tables[number].entries
    T = lifetime.tokens_per_frame
    return EdgeRows(first, entries[first // T : lifetime.table_length(end)].copy())


def split_rows(
    lifetime: LifetimeClass, rows: EdgeRows, start: int, at: int, end: int
) -> tuple[EdgeRows, EdgeRows, Handles]:
    """The rows of an edge [start, end) before and behind `at`, and the frames that are in both."""
    T = lifetime.tokens_per_frame
    offset = rows.first // T
    ends_above = rows.first < lifetime.num_rows(at)
    upper_end = lifetime.table_length(at) - offset if ends_above else 0
    begin = lifetime.frame_start(at)
    lower = EdgeRows(max(rows.first, begin))
    lower_start = lower.first // T - offset
    if lifetime.num_rows(at) == lifetime.num_rows(end):
        lower_start = len(rows.frames)
    lower.frames = rows.frames[lower_start:].copy()
    upper = EdgeRows(min(rows.first, lifetime.num_rows(at)), rows.frames[:upper_end].copy())
    return upper, lower, rows.frames[lower_start:upper_end]
