"""Which prefix gives its frames back first: a table of policies.

A policy turns a prefix into a number whenever it is used; the lowest number goes first. Running
sequences are never candidates.

    lru               least recently used; a hit is a use of the prefix that it goes on from, and of
                      none before it
    lru_path          the same, where a hit is a use of all prefixes on the way
    lru_cap_N         lru, with at most N states from the root to any node: where one more comes,
                      the shallowest goes, but those where prompts part
    lfu               used least often, then least recently
    fifo              created first
    priority          lowest priority, then least recently used
    seconds_per_byte  seconds of computing that a hit saves per byte held, on top of the score that
                      the last victim had when this was used, so that what is not used ages
                      (GreedyDual-Size, Cao and Irani 1997)
    marconi           moment of the last use plus w times operations saved per byte, each brought to
                      [0, 1] over all that could go; w is tuned (`prefixes.weight_tuning`), and 0
                      until then (Marconi, arXiv 2411.19379, equation 2). Operations are told by
                      the seconds that they take
    learned           the logarithm of the odds that there will be a hit (`prefixes.odds`), times
                      seconds per byte, plus the moment of the last use. Moments are counted in
                      lifetimes, from the last use to the eviction of what was worth keeping, so
                      that worth falls to 1 / e within one, whatever the load
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import ConfigError

Score = tuple[float, ...]


class Evictable(Protocol):
    """What may be evicted, with what policies look at.

    Attributes:
        priority: of the least importance first.
        created, last_use: when, by a clock of its owner.
        uses: how often.
        saved_seconds: of computing, by a hit on it.
        odds: that there will be one.
        floor, moment: of the queue, when it was last used.
    """

    priority: float
    created: int
    last_use: int
    uses: int
    saved_seconds: float
    odds: float
    floor: float
    moment: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A row of the table.

    Attributes:
        name: in tables.
        score: of what holds so many bytes.
        uses_path: whether a hit on a prefix is a use of all before it.
        states_per_path: most states from the root to any node; None for any number.
        weights: of the second number of a score beside the first one, one of which is chosen; none
            for scores that stand for themselves.
    """

    name: str
    score: Callable[[Evictable, int], Score]
    uses_path: bool = False
    states_per_path: int | None = None
    weights: tuple[float, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return policy_of, (self.name,)


def _last_use(item: Evictable, num_bytes: int) -> Score:
    return (item.last_use,)


def _seconds_per_byte(item: Evictable, num_bytes: int) -> float:
    return item.saved_seconds / max(1, num_bytes)


def _capped(name: str, count: int) -> Policy:
    return Policy(name=name, score=_last_use, states_per_path=count)


POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(name="lru", score=_last_use),
        Policy(name="lru_path", score=_last_use, uses_path=True),
        Policy(name="lfu", score=lambda item, num_bytes: (item.uses, item.last_use)),
        Policy(name="fifo", score=lambda item, num_bytes: (item.created,)),
        Policy(name="priority", score=lambda item, num_bytes: (item.priority, item.last_use)),
        Policy(
            name="seconds_per_byte",
            score=lambda item, num_bytes: (
                item.floor + _seconds_per_byte(item, num_bytes),
                item.last_use,
            ),
        ),
        Policy(
            name="marconi",
            score=lambda item, num_bytes: (item.last_use, _seconds_per_byte(item, num_bytes)),
            weights=(0.0, 0.25, 0.5, 1.0, 2.0),
        ),
        Policy(
            name="learned",
            score=lambda item, num_bytes: (
                item.moment + math.log(max(1e-30, item.odds * _seconds_per_byte(item, num_bytes))),
                item.last_use,
            ),
        ),
    )
}
NUMBERED: dict[str, Callable[[str, int], Policy]] = {"lru_cap": _capped}
"""With a number behind the name: `lru_cap_3`."""
NAMES = (*POLICIES, *(f"{kind}_N" for kind in NUMBERED))


def policy_of(name: str) -> Policy:
    """The policy of this name.

    Raises:
        ConfigError: no such name.
    """
    if name in POLICIES:
        return POLICIES[name]
    kind, _, number = name.rpartition("_")
    if kind in NUMBERED and number.isdecimal() and int(number):
        return NUMBERED[kind](name, int(number))
    raise ConfigError(
        f"eviction policy {name!r} is unknown; choose one of {', '.join(NAMES)} (N a number of at "
        "least 1)"
    )
