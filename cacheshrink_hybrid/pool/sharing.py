"""Sequences that share frames."""

from __future__ import annotations

from .held_frames import HeldFrames
from .layout import Layout
from .sequence import CachedSequence


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
    twin.origin = origin.origin
    twin.first = [min(first, num_tokens) for first in origin.first]
    twin.tables = [
        table.first_frames(lifetime.table_length(num_tokens, origin.origin))
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
