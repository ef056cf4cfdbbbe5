"""A radix tree of token prefixes over the frames of a pool: what is looked up in it, and kept.

An edge holds the rows of its tokens, a node perhaps the recurrent states of all layers behind them
(`edge_tree`). References of the tree pin nothing: whoever runs gets its frames when there are too
few (`ranked_tree`). What goes may be copied to a memory below, and comes back when a prompt asks
for it.

Where several sequences computed the same tokens, the rows of the first one stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ...errors import ConfigError, SequenceError
from ..frame_ledger import Handles
from ..held_frames import HeldFrames
from ..layout import Layout
from ..sequence import CachedSequence
from .lookup import NO_ROOM, Lookup, LookupCounts, PrefixStatistics, TierStatistics
from .node import PrefixNode, Tokens
from .odds import note
from .ranked_tree import RankedTree
from .search import begin_anew, begin_with, find, num_pinned, walk
from .state_codes import StateCodes


def _array(tokens: Sequence[int] | Tokens) -> Tokens:
    return np.asarray(tokens, dtype=np.int64)


class Below(Protocol):
    """Memory that takes what a tree gives up, see `tier`."""

    def take(self, tree: RankedTree, node: PrefixNode) -> None:
        """Copy the path to a node that is about to be given up, if that is worth its room."""

    def fetch_ahead(self, tree: PrefixTree, tokens: Tokens) -> None:
        """A prompt will be looked up soon, for which `restore` may copy something back."""

    def restore(self, tree: PrefixTree, tokens: Tokens) -> None:
        """Copy back what goes further along a prompt than what the tree has."""

    def clear(self) -> None:
        """Forget everything."""

    def statistics(self) -> tuple[TierStatistics, ...]:
        """Of this one and those below it."""

    def check_integrity(self) -> None:
        """Raise `FrameError` unless its numbers agree, and those below it."""


class PrefixTree(RankedTree):
    """Prefixes of sequences that were offered to it.

    Args:
        layout, frames, policy, codes: see `RankedTree`.

    Attributes:
        below: takes what is evicted; None for nobody.
        counts: of look-ups.
    """

    def __init__(
        self,
        layout: Layout,
        frames: HeldFrames,
        policy: str = "lru",
        codes: StateCodes | None = None,
    ) -> None:
        super().__init__(layout, frames, policy, codes)
        self.below: Below | None = None
        self.counts = LookupCounts()

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
            tiers=() if self.below is None else self.below.statistics(),
        )

    # Looking up

    def find(self, tokens: Sequence[int] | Tokens) -> Lookup:
        """How many of a prompt's tokens a new sequence need not compute: those before the deepest
        position, at least one token before the last, from which all layers can go on."""
        return find(self.layout, self.root, _array(tokens))[0]

    def expect(self, tokens: Sequence[int]) -> None:
        """A prompt will be looked up soon: let a disk begin to read what it has of it."""
        if self.below is not None:
            self.below.fetch_ahead(self, _array(tokens))

    def resume(self, tokens: Sequence[int], twin: CachedSequence) -> Lookup:
        """Let the empty sequence `twin` begin with what is found of a prompt. Copies nothing but
        what is restored from below, and a state that is kept in a code, which is decoded into
        frames of its own.

        Raises:
            SequenceError: the sequence has tokens, or the prompt has none.
        """
        if twin.num_tokens or not len(tokens):
            raise SequenceError(
                f"sequence {twin.seq_id!r} has {twin.num_tokens} tokens and is to take "
                f"{len(tokens)}; resume an empty one, with at least one token to take"
            )
        given = _array(tokens)
        if self.below is not None:
            self.below.restore(self, given)
        found, node = find(self.layout, self.root, given)
        if node is not None:
            begin_with(self.layout, self.frames, twin, node, found.num_tokens)
            coded = self.codes is not None and twin.state is not None
            num_frames = self.layout.state.num_frames if coded else 0
            if num_frames > self.num_available:
                begin_anew(self.frames, twin)
                found = Lookup(0, found.num_matched, NO_ROOM)
            else:
                note(node, used=True)
                node.uses += 1
                self.use(node)
                self._decode_state(twin, num_frames)
        self.counts.add(len(tokens), found)
        return found

    def _decode_state(self, twin: CachedSequence, num_frames: int) -> None:
        """Give a sequence that refers to a coded state the live one, of so many frames."""
        if not num_frames:
            return
        assert self.codes is not None and twin.state is not None
        self.make_room(num_frames)
        live = self.frames.allocate(num_frames, "state")
        self.codes.decode(self.frames.pool, twin.state, live)
        self.frames.release(twin.state)
        twin.state = live

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
        given, state = _array(tokens), None
        if checkpoint and sequence.state is not None:
            state = self._state_to_keep(given, sequence)
            checkpoint = state is not None
        if checkpoint or self.layout.classes:
            checkpoint = checkpoint and self.needs_checkpoints
            node = self.keep(given, sequence, state, checkpoint=checkpoint, kind=kind)
            node.priority = max(node.priority, priority)
            self.use(node)

    def keep(
        self,
        tokens: Tokens,
        sequence: CachedSequence,
        state: Handles | None,
        *,
        checkpoint: bool,
        kind: str,
    ) -> PrefixNode:
        """The node behind all tokens of a sequence, made unless it is there, and not ranked yet.

        Args:
            state: as it is kept, of which one reference is taken over; None for none.
            checkpoint: let the node be one that layers can go on from, by `state` and by rows that
                windows reach back to.
            kind: of a new node, or a new checkpoint.
        """
        node, at = walk(self.root, tokens)
        if at < node.end and (at < len(tokens) or checkpoint):
            behind, node = node, self.split(node, at)
            self.rank(behind)
        if at < len(tokens):
            before, node = node, self.grow(node, tokens, sequence)
            self.rank(before)
            node.kind = kind
        elif checkpoint and node.state is None:
            node.kind = kind
        if checkpoint:
            self.complete(node, sequence, state)
            self.thin(node)
        return node

    def _state_to_keep(self, tokens: Tokens, sequence: CachedSequence) -> Handles | None:
        """Frames of the state of a sequence with these tokens as it is kept, with one reference
        more; None if there is no room for them. Evicts, so that nodes that were found before may
        be gone."""
        assert sequence.state is not None
        node, at = walk(self.root, tokens)
        known = node.state if at == node.end == len(tokens) else None
        if known is None and self.codes is not None:
            if not self.make_room(self.codes.num_frames):
                return None
            state = self.frames.pool.allocate(self.codes.num_frames, "state")
            self.codes.encode(self.frames.pool, sequence.state, state)
            return state
        state = sequence.state if known is None else known
        self.retain(state)
        return state

    # Giving up

    def falls(self, node: PrefixNode) -> None:
        if self.below is not None:
            self.below.take(self, node)

    def clear(self) -> None:
        """Give up everything, below as well, which counts as no eviction."""
        super().clear()
        if self.below is not None:
            self.below.clear()
