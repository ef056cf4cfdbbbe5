"""The path to a node, copied from one tree of prefixes to another over frames of another pool."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..frame_ledger import Handles
from ..sequence import GONE, NO_HANDLES, CachedSequence, FrameTable
from .node import PrefixNode, Tokens
from .ranked_tree import RankedTree
from .search import begin_anew, begin_with, walk
from .tree import PrefixTree


class Missing(NamedTuple):
    """What a tree lacks of a path.

    Attributes:
        firsts: per lifetime class, position of the first row that is to be copied.
        rows: frames that have these rows.
        state: frames of the state behind them; None if it is there, or there is none.
    """

    firsts: list[int]
    rows: list[Handles]
    state: Handles | None

    @property
    def frames(self) -> Handles:
        """All of them."""
        return np.concatenate([NO_HANDLES, *self.rows, _or_none(self.state)])


class PathCopy:
    """The first tokens on the way to a node, which stay where they are until `close`.

    Args:
        source: that has the node.
        num_tokens: of the path, up to the node's end or within its edge.
    """

    def __init__(self, source: RankedTree, node: PrefixNode, num_tokens: int) -> None:
        self.source, self.node = source, node
        path = np.concatenate([NO_HANDLES, *(step.tokens for step in node.path())])
        self.tokens: Tokens = path[:num_tokens]
        count = len(source.layout.classes)
        self._held = CachedSequence("path", [FrameTable() for _ in range(count)], [0] * count)
        begin_with(source.layout, source.frames, self._held, node, num_tokens)
        if num_tokens < node.end and self._held.state is not None:
            source.frames.release(self._held.state)
            self._held.state = None

    def __enter__(self) -> PathCopy:
        return self

    def __exit__(self, *reason: object) -> None:
        begin_anew(self.source.frames, self._held)

    def missing(self, target: PrefixTree) -> Missing:
        """What another tree of the same digest lacks of it."""
        node, at = walk(target.root, self.tokens)
        firsts, rows = [], []
        for number, lifetime in enumerate(target.layout.classes):
            first, entries = self._held.first[number], self._held.tables[number].entries
            end = lifetime.num_rows(len(self.tokens))
            if lifetime.window is None:
                first = max(first, lifetime.frame_start(at) if lifetime.num_rows(at) < end else end)
            firsts.append(first)
            start = first // lifetime.tokens_per_frame if first < end else len(entries)
            rows.append(entries[start:])
        known = at == node.end == len(self.tokens) and node.state is not None
        return Missing(firsts, rows, None if known else self._held.state)

    def into(self, target: PrefixTree) -> PrefixNode | None:
        """Let another tree of the same digest have it, evicting as needed; the node there, or None
        if there is no room.

        Raises:
            DamagedFramesError: the frames of a file are not what was written there.
        """
        while len((lacks := self.missing(target)).frames) > target.frames.pool.num_free:
            if not target.make_room(len(lacks.frames)):
                return None
        content = self.source.frames.pool.read(lacks.frames)
        pool, tables, copies = target.frames.pool, [], []
        for number, lifetime in enumerate(target.layout.classes):
            copies.append(pool.allocate(len(lacks.rows[number]), lifetime.name))
            entries = np.full(len(self._held.tables[number]), GONE, dtype=np.int64)
            entries[len(entries) - len(copies[-1]) :] = copies[-1]
            tables.append(FrameTable(entries))
        state = None if lacks.state is None else pool.allocate(len(lacks.state), "state")
        targets = np.concatenate([NO_HANDLES, *copies, _or_none(state)])
        pool.write(targets, content)
        sequence = CachedSequence("copy", tables, lacks.firsts, num_tokens=len(self.tokens))
        resumes = self._held.state is not None or not target.layout.state.num_frames
        kept = target.keep(
            self.tokens,
            sequence,
            state,
            checkpoint=resumes and target.needs_checkpoints,
            kind=self.node.kind,
        )
        for handles in copies:
            target.release(handles)
        kept.priority = max(kept.priority, self.node.priority)
        kept.uses = max(kept.uses, self.node.uses)
        target.use(kept)
        return kept


def _or_none(handles: Handles | None) -> Handles:
    return NO_HANDLES if handles is None else handles
