"""How likely a node is used again, learned from those that were and those that were given up.

Nodes are told apart by what they were kept for, how often they were used, and whether anything is
kept behind them that others may go on from instead, such as the next turn of a conversation. Every
node counts what became of those behind it: of n that were used again or given up, r were used. On
the way from the root to a node the estimate is drawn from that of the node before to what was
counted here:

    p_0 = 1 / 2,    p_(i+1) = (r_i + K p_i) / (n_i + K),

so that a subtree in which nothing happened yet is judged by what is around it. Old outcomes weigh
less: where n reaches `MOST`, both counts are halved.
"""

from __future__ import annotations

from collections.abc import Iterator

from .node import PrefixNode

WEIGHT = 4.0
"""K, outcomes that weigh as much as the estimate of the node before."""
MOST = 64.0
"""Outcomes at which both counts of a node are halved, so that the latest say more."""
MOST_USES = 2
"""Nodes that were used more often are not told apart."""


def note(node: PrefixNode, *, used: bool) -> None:
    """A node was used, or is given up; to be called before its uses are counted up."""
    key = _key(node)
    for before in _around(node):
        counts = before.outcomes.setdefault(key, [0.0, 0.0])
        counts[0] += used
        counts[1] += 1
        if counts[1] >= MOST:
            counts[:] = [count / 2 for count in counts]


def odds_of(node: PrefixNode) -> float:
    """That a node will be used, between 0 and 1."""
    key, odds = _key(node), 0.5
    for before in reversed(list(_around(node))):
        used, outcomes = before.outcomes.get(key, (0.0, 0.0))
        odds = (used + WEIGHT * odds) / (outcomes + WEIGHT)
    return odds


def _key(node: PrefixNode) -> tuple[str, int, bool]:
    return node.kind, min(node.uses, MOST_USES), bool(node.children)


def _around(node: PrefixNode) -> Iterator[PrefixNode]:
    """The nodes before one, up to the root."""
    before = node.parent
    while before is not None:
        yield before
        before = before.parent
