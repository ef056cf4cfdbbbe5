"""Memory below a pool for prefixes that fell out of it: of the host, and of a disk.

A tier is a tree of prefixes over frames of its own. It has whole paths: what is given up above is
copied here with all before it that is not here yet, so that nothing depends on what is above. When
a prompt goes further here than above, the path is copied back. It stays here as well, so that it
need not be copied again when it falls the next time. A tier evicts by its own policy, to the tier
below if there is one. What it would give up before all else that it has goes there at once.
"""

from __future__ import annotations

import warnings
from copy import copy

from ...errors import CacheShrinkWarning
from ..accounts import check_accounts
from ..disk_frames import DamagedFramesError
from ..frame_pool import FramePool
from ..held_frames import HeldFrames
from ..layout import Layout
from .lookup import TierStatistics
from .node import PrefixNode, Tokens
from .odds import note
from .path_copy import PathCopy
from .ranked_tree import RankedTree
from .search import find
from .state_codes import StateCodes
from .tree import PrefixTree

LEAST_GAIN = 16
"""Tokens that copying back has to save: fewer are computed as soon."""

HOST, DISK = "host", "disk"


class Tier:
    """What prefixes fall into.

    Args:
        name: `HOST` or `DISK`.
        layout, codes: those of the tree above.
        pool: frames of its own.
        policy: what is evicted first, see `pool.eviction`.

    Attributes:
        tree: what it has.
        taken, refused, hits, restored_tokens: see `TierStatistics`.
    """

    def __init__(
        self,
        name: str,
        layout: Layout,
        pool: FramePool,
        policy: str,
        codes: StateCodes | None = None,
    ) -> None:
        self.name = name
        self.tree = PrefixTree(layout, HeldFrames(pool), policy, codes)
        self.taken = self.refused = self.hits = self.restored_tokens = 0

    def take(self, tree: RankedTree, node: PrefixNode) -> None:
        """Copy the path to a node that is about to be given up, if a hit on it would save anything
        and it is worth its room; else it goes to the tier below."""
        self.tree.seconds = tree.seconds
        if node.saved_seconds <= 0:
            return
        with PathCopy(tree, node, node.end) as path:
            needed = len(path.missing(self.tree).frames)
            worth = needed <= self.tree.frames.pool.num_free or self.tree.is_worth(
                copy(node), needed
            )
            if worth and path.into(self.tree) is not None:
                self.taken += 1
                return
        self.refused += 1
        if self.tree.below is not None:
            self.tree.below.take(tree, node)

    def fetch_ahead(self, tree: PrefixTree, tokens: Tokens) -> None:
        """Let frames be read that `restore` will ask for."""
        found, node = find(self.tree.layout, self.tree.root, tokens)
        if node is not None and found.num_tokens - tree.find(tokens).num_tokens >= LEAST_GAIN:
            with PathCopy(self.tree, node, found.num_tokens) as path:
                self.tree.frames.pool.fetch_ahead(path.missing(tree).frames)
        if self.tree.below is not None:
            self.tree.below.fetch_ahead(tree, tokens)

    def restore(self, tree: PrefixTree, tokens: Tokens) -> None:
        """Copy back what goes further along a prompt than what the tree above has, from here and
        from below."""
        found, node = find(self.tree.layout, self.tree.root, tokens)
        gain = found.num_tokens - tree.find(tokens).num_tokens
        if node is not None and gain >= LEAST_GAIN:
            note(node, used=True)
            node.uses += 1
            self.tree.use(node)
            if self._give(tree, node, found.num_tokens):
                self.hits += 1
                self.restored_tokens += gain
        if self.tree.below is not None:
            self.tree.below.restore(tree, tokens)

    def _give(self, tree: PrefixTree, node: PrefixNode, num_tokens: int) -> bool:
        """Copy a path back; False if there is no room, or it is damaged, so that nothing here can
        be relied on."""
        try:
            with PathCopy(self.tree, node, num_tokens) as path:
                return path.into(tree) is not None
        except DamagedFramesError as error:
            warnings.warn(
                f"the prefixes on the {self.name} are forgotten: {error}; see whether it is in "
                "order, and whether anything else writes there",
                CacheShrinkWarning,
                stacklevel=2,
            )
            self.tree.clear()
            return False

    def clear(self) -> None:
        """Forget everything, below as well."""
        self.tree.clear()

    def statistics(self) -> tuple[TierStatistics, ...]:
        """Of this tier and those below it."""
        pool, below = self.tree.frames.pool, self.tree.below
        own = TierStatistics(
            name=self.name,
            budget_bytes=pool.num_frames * pool.frame_bytes,
            held_bytes=pool.num_held * pool.frame_bytes,
            kept_tokens=self.tree.num_tokens,
            checkpoints=self.tree.num_checkpoints,
            taken=self.taken,
            refused=self.refused,
            hits=self.hits,
            restored_tokens=self.restored_tokens,
            evicted=self.tree.evicted,
        )
        return (own, *(() if below is None else below.statistics()))

    def check_integrity(self) -> None:
        """Raise `FrameError` unless every reference to a frame is that of a node."""
        check_accounts(self.tree.layout, self.tree.frames, (), (), self.tree)
        if self.tree.below is not None:
            self.tree.below.check_integrity()
