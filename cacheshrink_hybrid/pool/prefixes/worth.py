"""What a hit on a node saves."""

from __future__ import annotations

from collections.abc import Callable

from .node import PrefixNode


def num_tokens_between(begin: int, end: int) -> float:
    """A second for every token."""
    return float(end - begin)


def saved_seconds(
    node: PrefixNode, seconds: Callable[[int, int], float], *, with_states: bool
) -> float:
    """By a hit on a node, over one on those before it.

    Args:
        seconds: that it takes to compute the tokens [begin, end) of a sequence.
        with_states: sequences go on only where a state was kept, so a node without one saves
            nothing.
    """
    before = node.parent
    if with_states:
        if node.state is None:
            return 0.0
        while before is not None and before.parent is not None and before.state is None:
            before = before.parent
    return seconds(0 if before is None else before.end, node.end)
