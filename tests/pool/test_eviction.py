"""The order in which policies give things up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.pool.eviction import EvictionQueue


@dataclass(eq=False)
class Thing:
    name: str
    priority: float = 0.0
    created: int = 0
    last_use: int = 0
    uses: int = 0
    saved_seconds: float = 1.0
    odds: float = 0.5
    floor: float = 0.0
    moment: float = 0.0


def order(policy: str, *things: Thing) -> str:
    queue: EvictionQueue[Thing] = EvictionQueue(policy)
    for thing in things:
        queue.push(thing, 100)
    return "".join(queue.pop(10).name for _ in things)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("lru", "bca"),
        ("lfu", "acb"),
        ("fifo", "abc"),
        ("priority", "cba"),
        ("seconds_per_byte", "cab"),
        ("learned", "bac"),
    ],
)
def test_policies(policy: str, expected: str) -> None:
    things = (
        Thing("a", priority=3, created=1, last_use=9, uses=1, saved_seconds=5, odds=0.5),
        Thing("b", priority=2, created=2, last_use=2, uses=8, saved_seconds=6, odds=0.1),
        Thing("c", priority=1, created=3, last_use=5, uses=4, saved_seconds=4, odds=0.9),
    )
    assert order(policy, *things) == expected


def test_age_is_that_of_the_last_use() -> None:
    """Finding the place of something anew does not make it younger."""
    queue: EvictionQueue[Thing] = EvictionQueue("seconds_per_byte")
    old, first = Thing("old", saved_seconds=3.0), Thing("first", saved_seconds=2.0)
    queue.push(old, 1)
    queue.push(first, 1)
    assert queue.pop(1) is first
    queue.push(old, 1)
    queue.push(Thing("new", saved_seconds=2.0, floor=queue.floor), 1)
    assert queue.pop(2) is old


def test_moments_pass_as_fast_as_things_go() -> None:
    """Twice the lifetime, half as fast; what was of no use has none."""
    steps = []
    for lifetime in (50, 100):
        queue: EvictionQueue[Thing] = EvictionQueue("learned")
        for thing in (Thing("good"), Thing("useless", saved_seconds=0.0)):
            queue.push(thing, 10)
        assert queue.pop(9999).name == "useless"
        queue.pop(lifetime)
        steps.append(queue.next_moment())
    assert steps[0] == pytest.approx(2 * steps[1])


def test_unknown_policies() -> None:
    with pytest.raises(ConfigError, match="choose one of lru"):
        EvictionQueue("random")


def test_what_would_be_first_to_go_is_told() -> None:
    queue: EvictionQueue[Thing] = EvictionQueue("seconds_per_byte")
    assert queue.outranks(Thing("new", saved_seconds=0.0), 100)
    for name, seconds in (("low", 2.0), ("high", 5.0)):
        queue.push(Thing(name, saved_seconds=seconds), 100)
    assert not queue.outranks(Thing("new", saved_seconds=1.0), 100)
    assert queue.outranks(Thing("new", saved_seconds=3.0), 100)
    assert not queue.outranks(Thing("new", saved_seconds=3.0), 200)
    assert queue.pop(1).name == "low"
    assert not queue.outranks(Thing("new", saved_seconds=3.0), 100)
