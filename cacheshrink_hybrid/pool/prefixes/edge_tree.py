"""Edges and nodes over the frames of a pool: how a tree of prefixes grows, is cut and shrinks.

An edge holds the rows of its tokens, a node perhaps the recurrent states of all layers behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..frame_ledger import Handles
from ..held_frames import HeldFrames
from ..layout import Layout
from ..sequence import CachedSequence
from ..state_map import StateMap
from .node import EdgeRows, PrefixNode, Tokens, rows_of, split_rows
from .search import steps_to
from .state_codes import StateCodes


class EdgeTree:
    """Nodes with references to frames.

    Args:
        layout, frames: of the store.
        codes: of the states that are kept; None to keep live ones, in the frames that sequences
            have them in.

    Attributes:
        num_tokens, num_checkpoints: on all edges, and nodes with a recurrent state.
        clock: counts what happens to nodes.
        root: of no tokens.
    """

    def __init__(self, layout: Layout, frames: HeldFrames, codes: StateCodes | None = None) -> None:
        self.layout, self.frames, self.codes = layout, frames, codes
        self.num_tokens = self.num_checkpoints = self.clock = 0
        self.root = self.new_node(np.empty(0, dtype=np.int64), None, 0)

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

    @property
    def digest(self) -> str:
        """SHA-256 of how edges and states lie in frames, in hexadecimal."""
        return self.layout.digest if self.codes is None else self.codes.digest

    @property
    def kept_state(self) -> StateMap:
        """Where a kept state lies in its frames."""
        return self.layout.state if self.codes is None else self.codes.map

    # Growing

    def adopt(self, node: PrefixNode, parent: PrefixNode) -> None:
        """Hang a leaf, as it is, behind a node; its frames get one more reference."""
        for handles in node.holdings():
            self.retain(handles)
        node.parent, parent.children[int(node.tokens[0])] = parent, node
        self.num_tokens += len(node.tokens)
        self.num_checkpoints += node.state is not None
        self.clock = max(self.clock, node.last_use)

    def grow(self, parent: PrefixNode, tokens: Tokens, sequence: CachedSequence) -> PrefixNode:
        """A leaf behind `parent`, with the rows of the tokens that follow there."""
        leaf = self.new_node(tokens[parent.end :].copy(), parent, len(tokens))
        for number, lifetime in enumerate(self.layout.classes):
            rows = rows_of(lifetime, number, sequence, parent.end, len(tokens))
            self.retain(rows.frames)
            leaf.rows[number] = rows
        parent.children[int(leaf.tokens[0])] = leaf
        parent.lost_children.discard(int(leaf.tokens[0]))
        self.num_tokens += len(leaf.tokens)
        return leaf

    def complete(self, node: PrefixNode, sequence: CachedSequence, state: Handles | None) -> None:
        """Give a node the state behind it, of which a reference is taken over, and its path the
        rows that windows reach back to, where they lack."""
        if node.state is None and state is not None:
            node.state, node.lost_state = state, False
            self.num_checkpoints += 1
        elif state is not None:
            self.release(state)
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
                    self.retain(new.frames)
                    self.release(old.frames)
                    step.rows[number] = new
                if step.start <= needed:
                    break

    def split(self, node: PrefixNode, at: int) -> PrefixNode:
        """Cut the edge to a node in two, behind `at` tokens; the new node there."""
        parent, count = node.parent, at - node.start
        assert parent is not None and 0 < count < len(node.tokens)
        upper = self.new_node(node.tokens[:count].copy(), parent, at)
        upper.priority, upper.created, upper.uses = node.priority, node.created, node.uses
        upper.last_use, upper.floor, upper.moment = node.last_use, node.floor, node.moment
        upper.kind = node.kind
        for number, lifetime in enumerate(self.layout.classes):
            upper.rows[number], lower, doubled = split_rows(
                lifetime, node.rows[number], node.start, at, node.end
            )
            self.retain(doubled)
            node.rows[number] = lower
        parent.children[int(upper.tokens[0])] = upper
        node.tokens, node.parent = node.tokens[count:].copy(), upper
        upper.children[int(node.tokens[0])] = node
        return upper

    def remove(self, leaf: PrefixNode) -> PrefixNode:
        """Forget a leaf; the node before it."""
        parent = leaf.parent
        assert parent is not None
        for handles in leaf.holdings():
            self.release(handles)
        self.num_tokens -= len(leaf.tokens)
        self.num_checkpoints -= leaf.state is not None
        del parent.children[int(leaf.tokens[0])]
        parent.lost_children.add(int(leaf.tokens[0]))
        return parent

    def new_node(self, tokens: Tokens, parent: PrefixNode | None, end: int) -> PrefixNode:
        self.clock += 1
        rows = [EdgeRows(0) for _ in self.layout.classes]
        node = PrefixNode(tokens, end, rows, parent=parent)
        node.created = node.last_use = self.clock
        return node

    def retain(self, handles: Handles) -> None:
        self.frames.pool.retain(handles)

    def release(self, handles: Handles) -> None:
        self.frames.pool.release(handles)
