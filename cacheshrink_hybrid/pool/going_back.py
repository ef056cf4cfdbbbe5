"""Sequences that forget tokens: back to an earlier position, or some out of the middle."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NotSupportedError, SequenceError
from . import arena
from .frame_ledger import frame_ids
from .held_frames import HeldFrames
from .layout import Layout
from .reservation import own_frames
from .sequence import CachedSequence

Shift = Callable[[int, Tensor, int], Tensor]
"""(layer_idx, rows (k, row_bytes), distance) -> rows of keys turned by `distance` positions."""


def check_resume(layout: Layout, sequence: CachedSequence, position: int) -> None:
    """Raise unless the token at `position` could come next, after removing those from there on.

    Raises:
        SequenceError: there are fewer tokens.
        NotSupportedError: tokens that it sees have left a window, or no state is kept there.
    """
    if not 0 <= position <= sequence.num_tokens:
        raise SequenceError(
            f"sequence {sequence.seq_id!r} has {sequence.num_tokens} tokens, so it cannot go on "
            f"at {position}"
        )
    for lifetime, first in zip(layout.classes, sequence.first, strict=True):
        if position and lifetime.first_needed(position + 1) < first:
            raise NotSupportedError(
                f"sequence {sequence.seq_id!r} cannot go on at {position}: tokens before {first} "
                f"have left the window of {lifetime.window}; keep more history, or compute the "
                "sequence again"
            )
    kept = (0, sequence.num_tokens, *sequence.checkpoints)
    if layout.state.num_frames and position not in kept:
        raise NotSupportedError(
            f"sequence {sequence.seq_id!r} cannot go on at {position}: its recurrent state is kept "
            f"at {sorted(set(kept))} only; set checkpoints, or compute it again"
        )


def cut_tail(layout: Layout, frames: HeldFrames, sequence: CachedSequence, num_tokens: int) -> None:
    """Go back to `num_tokens` tokens, which was checked to be possible."""
    for number, lifetime in enumerate(layout.classes):
        keep = -(-num_tokens // lifetime.tokens_per_frame)
        frames.release(sequence.tables[number].cut(keep))
        sequence.first[number] = min(sequence.first[number], num_tokens)
    if not num_tokens:
        sequence.first = [0] * len(sequence.first)
    if layout.state.num_frames and num_tokens != sequence.num_tokens:
        old, sequence.state = sequence.state, None
        if num_tokens:
            sequence.state = sequence.checkpoints[num_tokens]
            frames.retain(sequence.state)
        if old is not None:
            frames.release(old)
        for position in [p for p in sequence.checkpoints if p > num_tokens]:
            frames.release(sequence.checkpoints.pop(position))
    sequence.num_tokens = num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class MiddleCut:
    """Removal of the tokens [begin, end) of a sequence that has tokens behind them.

    Attributes:
        firsts: per lifetime class, first position that is stored afterwards.
        shared: per class, table entries to copy because others hold them.
        missing: per class, frames for rows that move down to where frames are gone.
    """

    begin: int
    end: int
    firsts: list[int]
    shared: list[list[int]]
    missing: list[int]

    @property
    def num_needed(self) -> int:
        """Frames to allocate."""
        return sum(len(entries) for entries in self.shared) + sum(self.missing)


def plan_middle_cut(
    layout: Layout,
    frames: HeldFrames,
    sequence: CachedSequence,
    begin: int,
    end: int,
    unshiftable_layers: Collection[int],
) -> MiddleCut:
    """Work out a removal from the middle; changes nothing.

    Args:
        unshiftable_layers: that store keys which were rotated and cannot be turned.

    Raises:
        NotSupportedError: the sequence could not go on exactly.
    """
    refusal = f"tokens [{begin}, {end}) of sequence {sequence.seq_id!r} cannot be removed: "
    if layout.state.num_frames:
        raise NotSupportedError(
            refusal + "the recurrent state has taken them; remove a tail down to a checkpoint "
            "instead"
        )
    if unshiftable_layers:
        raise NotSupportedError(
            f"{refusal}layers {sorted(unshiftable_layers)} store keys that were rotated by their "
            "position, and the cache has no shift to turn them by"
        )
    removed = end - begin
    left = sequence.num_tokens - removed
    firsts, shared, missing = [], [], []
    for table, lifetime, first in zip(sequence.tables, layout.classes, sequence.first, strict=True):
        after = first if first <= begin else max(begin, first - removed)
        if lifetime.first_needed(left + 1) < after:
            raise NotSupportedError(
                f"{refusal}the window of {lifetime.window} would lack tokens that were dropped"
            )
        T = lifetime.tokens_per_frame
        firsts.append(after)
        missing.append(max(0, table.num_gone - after // T))
        start = max(begin // T, table.num_gone)
        counts = frames.pool.references(table.entries[start : -(-left // T)]).tolist()
        shared.append([start + i for i, count in enumerate(counts) if count > 1])
    return MiddleCut(begin=begin, end=end, firsts=firsts, shared=shared, missing=missing)


def cut_middle(
    layout: Layout,
    frames: HeldFrames,
    sequence: CachedSequence,
    cut: MiddleCut,
    *,
    rotated_layers: Collection[int],
    shift: Shift | None,
) -> None:
    """Do what was worked out, once the frames for it are free: rows behind the gap move down, keys
    of `rotated_layers` are turned by `shift`."""
    num_tokens, removed = sequence.num_tokens, cut.end - cut.begin
    for number, lifetime in enumerate(layout.classes):
        table, T = sequence.tables[number], lifetime.tokens_per_frame
        table.revive_leading(frames.allocate(cut.missing[number], lifetime.kind))
        own_frames(frames, [(table, entry) for entry in cut.shared[number]], lifetime.kind)
        ids = torch.from_numpy(frame_ids(table.entries)).to(frames.pool.device, torch.int64)
        stored = max(cut.end, sequence.first[number])
        for place, layer_idx in enumerate(lifetime.layer_ids):
            view = arena.row_view(frames.pool, lifetime, place)
            rows = arena.read_rows(view, ids, stored, num_tokens)
            if layer_idx in rotated_layers:
                assert shift is not None
                rows = shift(layer_idx, rows, -removed)
            arena.write_rows(view, ids, stored - removed, rows)
        frames.release(table.cut(-(-(num_tokens - removed) // T)))
    sequence.first = list(cut.firsts)
    sequence.num_tokens = num_tokens - removed
