"""What a hit on a node saves over one on the checkpoint before it."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.pool.prefixes.node import PrefixNode
from cacheshrink_hybrid.pool.prefixes.worth import num_tokens_between, saved_seconds

STATE = np.zeros(1, dtype=np.int64)


def path(*nodes: tuple[int, bool]) -> PrefixNode:
    """The last of nodes that end at these positions, with a state or without."""
    node = PrefixNode(np.empty(0, dtype=np.int64), 0, [])
    for end, has_state in nodes:
        tokens = np.zeros(end - node.end, dtype=np.int64)
        node = PrefixNode(tokens, end, [], parent=node, state=STATE if has_state else None)
    return node


@pytest.mark.parametrize(
    ("nodes", "with_states", "without"),
    [
        (((10, True),), 10, 10),
        (((10, True), (25, True)), 15, 15),
        (((10, True), (25, False), (30, True)), 20, 5),
        (((10, False), (30, True)), 30, 20),
        (((10, True), (30, False)), 0, 20),
    ],
)
def test_over_what_is_before(
    nodes: tuple[tuple[int, bool], ...], with_states: int, without: int
) -> None:
    last = path(*nodes)
    assert saved_seconds(last, num_tokens_between, with_states=True) == with_states
    assert saved_seconds(last, num_tokens_between, with_states=False) == without
