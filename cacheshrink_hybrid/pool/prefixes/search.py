"""Prompts looked up in a tree of prefixes, and sequences that begin with what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..frame_ledger import FRAME_MASK
from ..held_frames import HeldFrames
from ..layout import Layout
from ..sequence import GONE, CachedSequence, FrameTable
from .lookup import ALL, EVICTED, LAST_TOKEN, NO_CHECKPOINT, NO_PREFIX, Lookup
from .node import PrefixNode, Tokens


class Step(NamedTuple):
    """A node on the way, and per lifetime class the position from which on all rows up to the end
    of its edge are there."""

    node: PrefixNode
    firsts: list[int]


def walk(root: PrefixNode, tokens: Tokens) -> tuple[PrefixNode, int]:
    """The node at the end of the edge that matching ended in, and how many tokens match."""
    node, at = root, 0
    while at < len(tokens) and (child := node.children.get(int(tokens[at]))) is not None:
        edge = child.tokens[: len(tokens) - at]
        differing = np.flatnonzero(edge != tokens[at : at + len(edge)])
        count = int(differing[0]) if len(differing) else len(edge)
        node, at = child, at + count
        if count < len(child.tokens):
            break
    return node, at


def steps_to(layout: Layout, last: PrefixNode) -> Iterator[Step]:
    """From the first node behind the root to `last`."""
    firsts = [0] * len(layout.classes)
    for node in last.path():
        firsts = [
            rows.first_on_path(lifetime, node.start, before)
            for rows, lifetime, before in zip(node.rows, layout.classes, firsts, strict=True)
        ]
        yield Step(node, firsts)


def find(layout: Layout, root: PrefixNode, tokens: Tokens) -> tuple[Lookup, PrefixNode | None]:
    """The deepest position, at least one token before the last, from which all layers can go on,
    and the node whose edge it lies in, or ends."""
    last, reached = walk(root, tokens)
    limit = len(tokens) - 1
    matched = min(reached, limit)
    place, node, lost = 0, None, False
    steps = list(steps_to(layout, last))
    for step in steps:
        if step.node.start >= matched:
            break
        at = min(step.node.end, matched)
        if _resumes(layout, step, at):
            place, node, lost = at, step.node, False
        lost = lost or (step.node.lost_state and at == step.node.end)
    if place < matched:
        reason = EVICTED if lost else NO_CHECKPOINT
        ends = reached == last.end == len(tokens)
        if not lost and ends and _resumes(layout, steps[-1], last.end):
            reason = LAST_TOKEN
    elif matched == limit:
        reason = ALL
    else:
        gone = matched == last.end and int(tokens[matched]) in last.lost_children
        reason = EVICTED if gone else NO_PREFIX
    return Lookup(place, matched, reason), node


def _resumes(layout: Layout, step: Step, position: int) -> bool:
    """Whether a sequence can go on at a position within an edge or at its end."""
    node = step.node
    if layout.state.num_frames and (position < node.end or node.state is None):
        return False
    return all(
        min(first, position) <= lifetime.first_needed(position + 1)
        for lifetime, first in zip(layout.classes, step.firsts, strict=True)
    )


def begin_with(
    layout: Layout, frames: HeldFrames, twin: CachedSequence, node: PrefixNode, num_tokens: int
) -> None:
    """Let the empty sequence `twin` refer to the first `num_tokens` tokens on the way to `node`, at
    which it was found that a sequence can go on. Copies nothing."""
    steps = list(steps_to(layout, node))
    twin.num_tokens = num_tokens
    twin.first = [min(first, num_tokens) for first in steps[-1].firsts]
    twin.tables = [
        _table(steps, number, lifetime.table_length(num_tokens), lifetime.tokens_per_frame)
        for number, lifetime in enumerate(layout.classes)
    ]
    for table, first, lifetime in zip(twin.tables, twin.first, layout.classes, strict=True):
        table.drop_leading(first // lifetime.tokens_per_frame)
    twin.state = node.state if layout.state.num_frames else None
    for handles in twin.holdings():
        frames.retain(handles)


def begin_anew(frames: HeldFrames, twin: CachedSequence) -> None:
    """Let a sequence that was begun so be empty again."""
    for handles in list(twin.holdings()):
        frames.release(handles)
    twin.num_tokens, twin.state = 0, None
    twin.first = [0] * len(twin.tables)
    twin.tables = [FrameTable() for _ in twin.tables]


def num_pinned(layout: Layout, frames: HeldFrames, node: PrefixNode, num_tokens: int) -> int:
    """Frames that a sequence would share in `begin_with` and never copy, and that other sequences
    hold in any case; windows let go of theirs and are left out."""
    steps, count = list(steps_to(layout, node)), 0
    for number, lifetime in enumerate(layout.classes):
        if lifetime.window is None:
            whole = lifetime.num_rows(num_tokens) // lifetime.tokens_per_frame
            handles = _table(steps, number, whole, lifetime.tokens_per_frame).entries
            count += int(np.count_nonzero(frames.pins[handles & FRAME_MASK]))
    return count


def _table(steps: Sequence[Step], number: int, length: int, tokens_per_frame: int) -> FrameTable:
    """Frames of one lifetime class along a path: where edges meet within a frame, the later one's,
    which has the rows of both."""
    entries = np.full(length, GONE, dtype=np.int64)
    for step in steps:
        rows = step.node.rows[number]
        at = rows.first // tokens_per_frame
        frames = rows.frames[: max(0, length - at)]
        entries[at : at + len(frames)] = frames
    return FrameTable(entries)
