"""The order in which policies give things up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cacheshrink_hybrid.pool.eviction_queue import EvictionQueue, WeighedQueue, queue_of, weighed


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
    queue: EvictionQueue[Thing] = queue_of(policy)
    for thing in things:
        queue.push(thing, 100)
    return "".join(queue.pop(10).name for _ in things)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("lru", "bca"),
        ("lru_path", "bca"),
        ("lru_cap_2", "bca"),
        ("marconi", "bca"),
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
    queue: EvictionQueue[Thing] = queue_of("seconds_per_byte")
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
        queue: EvictionQueue[Thing] = queue_of("learned")
        for thing in (Thing("good"), Thing("useless", saved_seconds=0.0)):
            queue.push(thing, 10)
        assert queue.pop(9999).name == "useless"
        queue.pop(lifetime)
        steps.append(queue.next_moment())
    assert steps[0] == pytest.approx(2 * steps[1])


def test_what_would_be_first_to_go_is_told() -> None:
    queue: EvictionQueue[Thing] = queue_of("seconds_per_byte")
    assert queue.outranks(Thing("new", saved_seconds=0.0), 100)
    for name, seconds in (("low", 2.0), ("high", 5.0)):
        queue.push(Thing(name, saved_seconds=seconds), 100)
    assert not queue.outranks(Thing("new", saved_seconds=1.0), 100)
    assert queue.outranks(Thing("new", saved_seconds=3.0), 100)
    assert not queue.outranks(Thing("new", saved_seconds=3.0), 200)
    assert queue.pop(1).name == "low"
    assert not queue.outranks(Thing("new", saved_seconds=3.0), 100)


def test_recency_and_efficiency_are_brought_to_one_range() -> None:
    assert weighed([(10.0, 3.0), (20.0, 1.0), (30.0, 2.0)], 0.5).tolist() == [0.5, 0.5, 1.25]
    assert weighed([(7.0, 3.0), (7.0, 3.0)], 2.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        # Uses at 1, 5, 9 and 3; seconds per byte 4, 1, 0 and 2 hundredths. As the queue shrinks,
        # what is left is brought to [0, 1] anew.
        (0.0, "adbc"),
        (0.6, "dabc"),  # a 0.6, b 0.5 + 0.15, c 1, d 0.25 + 0.3; then b 0 + 0.6, c 1
        (3.0, "cbda"),  # a 3, b 0.5 + 0.75, c 1, d 0.25 + 1.5; then a 3, b 1, d 0.5 + 1
    ],
)
def test_the_order_of_weighed_scores(weight: float, expected: str) -> None:
    queue: WeighedQueue[Thing] = queue_of("marconi")  # type: ignore[assignment]
    queue.weight = weight
    for name, last_use, seconds in (("a", 1, 4.0), ("b", 5, 1.0), ("c", 9, 0.0), ("d", 3, 2.0)):
        queue.push(Thing(name, last_use=last_use, saved_seconds=seconds), 100)
    assert "".join(queue.pop(10).name for _ in range(4)) == expected
    assert len(queue) == 0
    assert queue.outranks(Thing("alone"), 1)


def test_weighed_items_find_their_place_anew_and_are_forgotten() -> None:
    queue: WeighedQueue[Thing] = queue_of("marconi")  # type: ignore[assignment]
    first, second = Thing("first", last_use=1), Thing("second", last_use=2)
    for thing in (first, second, Thing("gone")):
        queue.push(thing, 1)
    queue.discard(next(thing for thing in queue._entry if thing.name == "gone"))
    first.last_use = 3
    queue.push(first, 1)
    assert not queue.outranks(Thing("old", last_use=0), 1)
    assert queue.outranks(Thing("new", last_use=9), 1)
    assert [queue.pop(4) for _ in range(2)] == [second, first]
