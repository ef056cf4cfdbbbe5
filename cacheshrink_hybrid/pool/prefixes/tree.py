"""A radix tree of token prefixes over the frames of a pool.

An edge holds the rows of its tokens, a node perhaps the recurrent states of all layers behind them.
References of the tree pin nothing: whoever runs gets its frames when there are too few, node by
node, in the order of an eviction policy. A leaf goes as a whole, an inner node gives up its state.

Where several sequences computed the same tokens, the rows of the first one stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError, SequenceError
from ..eviction import EvictionQueue
from ..frame_ledger import Handles
from ..held_frames import HeldFrames
from ..layout import Layout
from ..sequence import CachedSequence
from .lookup import Lookup, LookupCounts, PrefixStatistics
from .node import EdgeRows, PrefixNode, Tokens, rows_of, split_rows
from .odds import note, odds_of
from .search import begin_with, find, num_pinned, steps_to, walk
from .worth import num_tokens_between, saved_seconds


def _array(tokens: Sequence[int]) -> Tokens:
    return np.asarray(tokens, dtype=np.int64)


def _num_held(node: PrefixNode) -> int:
    """References to frames that a node has."""
    return sum(map(len, node.holdings()))


class PrefixTree:
    """Prefixes of sequences that were offered to it.

    Args:
        layout, frames: of the store.
        policy: what is evicted first, see `pool.eviction`.

    Attributes:
        seconds: what it takes to compute the tokens [begin, end) of a sequence, for the policy
            `seconds_per_byte`; a second per token unless somebody knows better.
        counts: of look-ups.
        num_tokens, num_checkpoints: on all edges, and nodes with a recurrent state.
        evicted: edges and states given up so far.
        root: of no tokens.
    """

    def __init__(self, layout: Layout, frames: HeldFrames, policy: str = "lru") -> None:
        self.layout = layout
        self.frames = frames
        self.seconds: Callable[[int, int], float] = num_tokens_between
        self.num_tokens = self.num_checkpoints = self.evicted = 0
        self.counts = LookupCounts()
        self._queue: EvictionQueue[PrefixNode] = EvictionQueue(policy)
        self._clock = 0
        self.root = self._new_node(np.empty(0, dtype=np.int64), None, 0)

    def __getstate__(self) -> dict[str, Any]:
        nodes = [self.root, *self]
        numbers = {node: number for number, node in enumerate(nodes)}
        parents = [0 if node.parent is None else numbers[node.parent] for node in nodes]
        return {**vars(self), "_nodes": nodes, "_parents": parents}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nodes, parents = state.pop("_nodes"), state.pop("_parents")
        vars(self).update(state)
        for node, parent in zip(nodes[1:], parents[1:], strict=True):
            node.parent = nodes[parent]
            node.parent.children[int(node.tokens[0])] = node

    # What is there

    def __iter__(self) -> Iterator[PrefixNode]:
        """All nodes but the root, each before those behind it."""
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()

    @property
    def needs_checkpoints(self) -> bool:
        """Whether sequences go on only from where a state, or the rows of a window, was kept."""
        windows = any(lifetime.window is not None for lifetime in self.layout.classes)
        return windows or self.layout.state.num_frames > 0

    def statistics(self) -> PrefixStatistics:
        counts = self.counts
        hits, misses = counts.limits.total(), counts.misses.total()
        return PrefixStatistics(
            lookups=hits + misses,
            hits=hits,
            asked_tokens=counts.asked_tokens,
            saved_tokens=counts.saved_tokens,
            limits=dict(counts.limits),
            misses=dict(counts.misses),
            kept_tokens=self.num_tokens,
            checkpoints=self.num_checkpoints,
            held_bytes=self.frames.num_evictable * self.layout.frame_bytes,
            evicted=self.evicted,
        )

    # Looking up

    def find(self, tokens: Sequence[int]) -> Lookup:
        """How many of a prompt's tokens a new sequence need not compute: those before the deepest
        position, at least one token before the last, from which all layers can go on."""
        return find(self.layout, self.root, _array(tokens))[0]

    def resume(self, tokens: Sequence[int], twin: CachedSequence) -> Lookup:
        """Let the empty sequence `twin` begin with what is found of a prompt. Copies nothing.

        Raises:
            SequenceError: the sequence has tokens, or the prompt has none.
        """
        if twin.num_tokens or not len(tokens):
            raise SequenceError(
                f"sequence {twin.seq_id!r} has {twin.num_tokens} tokens and is to take "
                f"{len(tokens)}; resume an empty one, with at least one token to take"
            )
        found, node = find(self.layout, self.root, _array(tokens))
        self.counts.add(len(tokens), found)
        if node is not None:
            begin_with(self.layout, self.frames, twin, node, found.num_tokens)
            note(node, used=True)
            node.uses += 1
            self._use(node)
        return found

    def num_pinned(self, tokens: Sequence[int]) -> int:
        """Frames of what would be found of a prompt that sequences hold in any case, so that one
        more takes nothing from anybody."""
        found, node = find(self.layout, self.root, _array(tokens))
        return 0 if node is None else num_pinned(self.layout, self.frames, node, found.num_tokens)

    # Keeping

    def offer(
        self,
        tokens: Sequence[int],
        sequence: CachedSequence,
        *,
        checkpoint: bool = True,
        priority: float = 0.0,
        kind: str = "",
    ) -> None:
        """Keep the tokens of a sequence as it stands: its rows, and its state behind them.

        Args:
            tokens: all that it has.
            checkpoint: False for rows alone, also in a model that does not go on from those.
            priority: for the eviction policy of this name; the highest of all offers counts.
            kind: what it is kept for; that of the first offer counts.

        Raises:
            ConfigError: a priority below 0, or none.
            SequenceError: these are not as many tokens as it has, it has none, or begins with
                padding.
        """
        if len(tokens) != sequence.num_tokens or sequence.origin or not len(tokens):
            raise SequenceError(
                f"sequence {sequence.seq_id!r} has {sequence.num_tokens} tokens, {sequence.origin} "
                f"of them padding, and {len(tokens)} are offered; offer all tokens of a sequence "
                "that has some, and no padding"
            )
        if not 0 <= priority < math.inf:
            raise ConfigError(f"priority={priority} must be a number of at least 0")
        given = _array(tokens)
        node, at = walk(self.root, given)
        if not (checkpoint or self.layout.classes):
            return  # there is nothing to keep
        checkpoint = checkpoint and self.needs_checkpoints
        if at < node.end and (at < len(given) or checkpoint):
            node = self._split(node, at)
        if at < len(given):
            node = self._grow(node, given, sequence)
            node.kind = kind
        elif checkpoint and node.state is None:
            node.kind = kind
        node.priority = max(node.priority, priority)
        if checkpoint:
            self._complete(node, sequence)
        self._use(node)

    def adopt(self, node: PrefixNode, parent: PrefixNode) -> None:
        """Hang a leaf, as it is, behind a node; its frames get one more reference."""
        for handles in node.holdings():
            self._retain(handles)
        node.parent, parent.children[int(node.tokens[0])] = parent, node
        self.num_tokens += len(node.tokens)
        self.num_checkpoints += node.state is not None
        self._clock = max(self._clock, node.last_use)
        self._rank(parent)
        self._rank(node)

    def _grow(self, parent: PrefixNode, tokens: Tokens, sequence: CachedSequence) -> PrefixNode:
        """A leaf behind `parent`, with the rows of the tokens that follow there."""
        leaf = self._new_node(tokens[parent.end :].copy(), parent, len(tokens))
        for number, lifetime in enumerate(self.layout.classes):
            rows = rows_of(lifetime, number, sequence, parent.end, len(tokens))
            self._retain(rows.frames)
            leaf.rows[number] = rows
        parent.children[int(leaf.tokens[0])] = leaf
        parent.lost_children.discard(int(leaf.tokens[0]))
        self._rank(parent)
        self.num_tokens += len(leaf.tokens)
        return leaf

    def _complete(self, node: PrefixNode, sequence: CachedSequence) -> None:
        """Give a node the state of a sequence that ends there, and its path the rows that windows
        reach back to, where they lack."""
        if node.state is None and sequence.state is not None:
            self._retain(sequence.state)
            node.state, node.lost_state = sequence.state, False
            self.num_checkpoints += 1
        for number, lifetime in enumerate(self.layout.classes):
            if lifetime.window is None:
                continue
            needed = lifetime.first_needed(node.end + 1)
            for step, firsts in reversed(list(steps_to(self.layout, node))):
                if firsts[number] <= needed:
                    break
                old = step.rows[number]
                new = rows_of(lifetime, number, sequence, step.start, step.end)
                if new.first < old.first:
                    self._retain(new.frames)
                    self._release(old.frames)
                    step.rows[number] = new
                if step.start <= needed:
                    break

    def _split(self, node: PrefixNode, at: int) -> PrefixNode:
        """Cut the edge to a node in two, behind `at` tokens; the new node there."""
        parent, count = node.parent, at - node.start
        assert parent is not None and 0 < count < len(node.tokens)
        upper = self._new_node(node.tokens[:count].copy(), parent, at)
        upper.priority, upper.created, upper.uses = node.priority, node.created, node.uses
        upper.last_use, upper.floor, upper.moment = node.last_use, node.floor, node.moment
        upper.kind = node.kind
        for number, lifetime in enumerate(self.layout.classes):
            upper.rows[number], lower, doubled = split_rows(
                lifetime, node.rows[number], node.start, at, node.end
            )
            self._retain(doubled)
            node.rows[number] = lower
        parent.children[int(upper.tokens[0])] = upper
        node.tokens, node.parent = node.tokens[count:].copy(), upper
        upper.children[int(node.tokens[0])] = node
        self._rank(node)
        return upper

    def _new_node(self, tokens: Tokens, parent: PrefixNode | None, end: int) -> PrefixNode:
        self._clock += 1
        rows = [EdgeRows(0) for _ in self.layout.classes]
        node = PrefixNode(tokens, end, rows, parent=parent)
        node.created = node.last_use = self._clock
        return node

    def _retain(self, handles: Handles) -> None:
        self.frames.pool.retain(handles)

    def _release(self, handles: Handles) -> None:
        self.frames.pool.release(handles)

    # Giving up

    def make_free(self, num_frames: int) -> None:
        """Evict until so many more frames are free, or nothing is left."""
        due = self.frames.pool.num_free + num_frames
        while len(self._queue) and (missing := due - self.frames.pool.num_free) > 0:
            self._evict(missing)

    def clear(self) -> None:
        """Give up everything, which counts as no eviction."""
        for node in self:
            self._queue.discard(node)
            for handles in node.holdings():
                self._release(handles)
        self.root.children.clear()
        self.root.lost_children.clear()
        self.num_tokens = self.num_checkpoints = 0

    def _evict(self, num_frames: int) -> None:
        """Give up one edge or state; of an edge that serves at any length, not more of its end than
        makes so many frames free."""
        node = self._queue.pop(self._clock)
        note(node, used=False)
        self.evicted += 1
        if not self.needs_checkpoints:
            cut = node.end - num_frames * self.layout.classes[0].tokens_per_frame
            if cut > node.start:
                self._split(node, cut)
                self._queue.discard(node)
        if node.children:
            assert node.state is not None
            self._release(node.state)
            node.state, node.lost_state = None, True
            self.num_checkpoints -= 1
            return
        self._rank(self._without_empty(self._remove(node)))

    def _remove(self, leaf: PrefixNode) -> PrefixNode:
        """Forget a leaf; the node before it."""
        parent = leaf.parent
        assert parent is not None
        self._queue.discard(leaf)
        for handles in leaf.holdings():
            self._release(handles)
        self.num_tokens -= len(leaf.tokens)
        self.num_checkpoints -= leaf.state is not None
        del parent.children[int(leaf.tokens[0])]
        parent.lost_children.add(int(leaf.tokens[0]))
        return parent

    def _without_empty(self, node: PrefixNode) -> PrefixNode:
        """Forget a leaf that holds nothing, and those before that are left so; the node that is
        not."""
        while not node.children and node.parent is not None and not _num_held(node):
            node = self._remove(node)
        return node

    def _use(self, node: PrefixNode) -> None:
        """A node was used just now."""
        self._clock += 1
        node.last_use = self._clock
        node.floor, node.moment = self._queue.floor, self._queue.next_moment()
        self._rank(node)

    def _rank(self, node: PrefixNode) -> None:
        """Let a node be evicted in its turn, if there is anything that it can give up."""
        if node.parent is None:
            return
        self._queue.discard(node)
        if node.children and node.state is None:
            return
        node.saved_seconds = saved_seconds(
            node, self.seconds, with_states=self.layout.state.num_frames > 0
        )
        node.odds = odds_of(node)
        num_frames = self.layout.state.num_frames if node.children else _num_held(node)
        self._queue.push(node, num_frames * self.layout.frame_bytes)
