"""What a tree of prefixes gives up when frames are needed, and in which order.

References of the tree pin nothing: whoever runs gets its frames when there are too few, node by
node, in the order of an eviction policy. A leaf goes as a whole or, where sequences go on from any
token, from its end; an inner node gives up its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..eviction_queue import EvictionQueue, queue_of
from ..held_frames import HeldFrames
from ..layout import Layout
from .edge_tree import EdgeTree
from .node import PrefixNode
from .odds import note, odds_of
from .state_codes import StateCodes
from .worth import num_tokens_between, saved_seconds


class RankedTree(EdgeTree):
    """Edges and nodes that are evicted in their turn.

    Args:
        layout, frames, codes: see `EdgeTree`.
        policy: what is evicted first, see `pool.eviction`.

    Attributes:
        queue: of all that can be given up.
        seconds: what it takes to compute the tokens [begin, end) of a sequence, for the policies
            that weigh it; a second per token unless somebody knows better.
        evicted: edges and states given up so far.
    """

    def __init__(
        self,
        layout: Layout,
        frames: HeldFrames,
        policy: str = "lru",
        codes: StateCodes | None = None,
    ) -> None:
        super().__init__(layout, frames, codes)
        self.seconds: Callable[[int, int], float] = num_tokens_between
        self.evicted = 0
        self.queue: EvictionQueue[PrefixNode] = queue_of(policy)

    # Ranking

    def use(self, node: PrefixNode) -> None:
        """A node was used just now."""
        self.clock += 1
        moment = self.queue.next_moment()
        for used in node.path() if self.queue.policy.uses_path else [node]:
            used.last_use, used.floor, used.moment = self.clock, self.queue.floor, moment
            self.rank(used)

    def rank(self, node: PrefixNode) -> None:
        """Let a node be evicted in its turn, if there is anything that it can give up."""
        if node.parent is None:
            return
        self.queue.discard(node)
        if node.children and node.state is None:
            return
        node.saved_seconds = saved_seconds(
            node, self.seconds, with_states=self.layout.state.num_frames > 0
        )
        node.odds = odds_of(node)
        num_frames = self.kept_state.num_frames if node.children else _num_held(node)
        self.queue.push(node, num_frames * self.layout.frame_bytes)

    def adopt(self, node: PrefixNode, parent: PrefixNode) -> None:
        super().adopt(node, parent)
        self.rank(parent)
        self.rank(node)

    def is_worth(self, node: PrefixNode, num_frames: int) -> bool:
        """Whether a copy of a node of another tree, if it were made now and took so many frames,
        would not be given up before all that is here."""
        node.created = node.last_use = self.clock + 1
        node.floor, node.moment = self.queue.floor, self.queue.moment
        return self.queue.outranks(node, num_frames * self.layout.frame_bytes)

    # Giving up

    @property
    def num_available(self) -> int:
        """Frames that are free, or would be if everything were given up."""
        return self.frames.pool.num_free + self.frames.num_evictable

    def make_room(self, num_frames: int) -> bool:
        """Evict until so many frames are free; False, and nothing is evicted, if there cannot be
        so many."""
        if num_frames > self.num_available:
            return False
        self.make_free(num_frames - self.frames.pool.num_free)
        return True

    def make_free(self, num_frames: int) -> None:
        """Evict until so many more frames are free, or nothing is left."""
        due = self.frames.pool.num_free + num_frames
        while len(self.queue) and (missing := due - self.frames.pool.num_free) > 0:
            self.evict_some(missing)

    def evict_some(self, num_frames: int) -> None:
        """Evict until so many more frames are free, nothing is left, or something made none free:
        a running sequence has them, which so need not copy them any more before it writes."""
        due = self.frames.pool.num_free + num_frames
        while len(self.queue) and (missing := due - self.frames.pool.num_free) > 0:
            before = self.frames.pool.num_free
            self._evict(missing)
            if self.frames.pool.num_free == before:
                return

    def clear(self) -> None:
        """Give up everything, which counts as no eviction."""
        for node in self:
            self.queue.discard(node)
            for handles in node.holdings():
                self.release(handles)
        self.root.children.clear()
        self.root.lost_children.clear()
        self.num_tokens = self.num_checkpoints = 0

    def thin(self, tail: PrefixNode) -> None:
        """Give up states on the way to a node, the shallowest first, until there are no more than
        the policy allows; its own stays, and so do those where prompts part."""
        most = self.queue.policy.states_per_path
        if most is None:
            return
        with_state = [node for node in tail.path() if node.state is not None]
        inner = [node for node in with_state if node is not tail and len(node.children) < 2]
        for node in inner[: max(0, len(with_state) - most)]:
            self.queue.discard(node)
            self._part_with(node)
            self._give_up_state(node)

    def falls(self, node: PrefixNode) -> None:
        """A node is about to be given up, for whoever wants a copy of the path to it."""

    def _evict(self, num_frames: int) -> None:
        """Give up one edge or state; of an edge that serves at any length, not more of its end than
        makes so many frames free."""
        node = self.queue.pop(self.clock)
        self._part_with(node)
        if not self.needs_checkpoints:
            cut = node.end - num_frames * self.layout.classes[0].tokens_per_frame
            if cut > node.start:
                self.split(node, cut)
        if node.children:
            self._give_up_state(node)
        else:
            self.rank(self._without_empty(self.remove(node)))

    def _part_with(self, node: PrefixNode) -> None:
        note(node, used=False)
        self.evicted += 1
        self.falls(node)

    def _give_up_state(self, node: PrefixNode) -> None:
        assert node.state is not None
        self.release(node.state)
        node.state, node.lost_state = None, True
        self.num_checkpoints -= 1
        for behind in _next_with_state(node):
            self.rank(behind)

    def _without_empty(self, node: PrefixNode) -> PrefixNode:
        """Forget a leaf that holds nothing, and those before that are left so; the node that is
        not."""
        while not node.children and node.parent is not None and not _num_held(node):
            self.queue.discard(node)
            node = self.remove(node)
        return node


def _num_held(node: PrefixNode) -> int:
    """References to frames that a node has."""
    return sum(map(len, node.holdings()))


def _next_with_state(node: PrefixNode) -> Iterator[PrefixNode]:
    """The first nodes with a state on every way on from one."""
    waiting = list(node.children.values())
    while waiting:
        behind = waiting.pop()
        if behind.state is None:
            waiting += behind.children.values()
        else:
            yield behind
