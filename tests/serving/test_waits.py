"""Whom a server has waited for, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field

from cacheshrink_hybrid.serving.waits import Waits, has_head, has_request


@dataclass(eq=False)
class Cycle:
    """A request and its answer."""

    response_complete: bool = False
    more_body: bool = False


@dataclass(eq=False)
class Wire:
    """A connection, its transport and its flow in one."""

    cycle: Cycle | None = None
    unread: int = 0
    write_paused: bool = False
    closing: bool = False
    transport: Wire = field(init=False)
    flow: Wire = field(init=False)

    def __post_init__(self) -> None:
        self.transport = self.flow = self

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing


def looks(wire: Wire, *changes: dict) -> list[bool]:
    """Whether a connection is overdue at each second, before which it changes; it has 2 of them."""
    waits, found = Waits(2.0), []
    for second, change in enumerate(changes):
        for name, value in change.items():
            setattr(wire, name, value)
        found.append(waits.overdue([wire], float(second)) == [wire])
    return found


def answered() -> dict:
    return {"cycle": Cycle(response_complete=True)}


def test_a_head_has_its_time() -> None:
    assert looks(Wire(), {}, {}, {}, {}) == [False, False, False, True]
    assert looks(Wire(), {}, {}, {"cycle": Cycle()}, {}, {}) == [False] * 5
    behind = Wire(**answered())
    assert looks(behind, {}, {}, {}, {}) == [False, False, False, True]


def test_a_request_between_two_looks_begins_the_time_anew() -> None:
    assert looks(Wire(), {}, answered(), answered(), answered(), answered()) == [False] * 5
    assert looks(Wire(), {}, answered(), {}, {}, {}) == [False, False, False, False, True]


def test_an_answer_that_is_read_has_all_the_time() -> None:
    reading = [{"unread": size} for size in (900, 800, 700, 600, 500)]
    assert looks(Wire(cycle=Cycle(), write_paused=True), *reading) == [False] * 5
    assert looks(Wire(**answered()), *reading) == [False] * 5


def test_an_answer_of_which_nothing_is_read() -> None:
    for wire in (
        Wire(cycle=Cycle(), unread=9, write_paused=True),
        Wire(cycle=Cycle(), unread=9, closing=True),
        Wire(cycle=Cycle(response_complete=True), unread=9),
    ):
        assert looks(wire, {}, {}, {}, {}) == [False, False, False, True]
    written = Wire(cycle=Cycle(), unread=9)  # and the next token is on its way
    assert looks(written, {}, {}, {}, {}) == [False] * 4


def test_connections_that_are_gone_are_forgotten() -> None:
    waits, wire = Waits(2.0), Wire()
    assert waits.overdue([wire], 0.0) == waits.overdue([], 1.0) == waits.overdue([wire], 9.0) == []


def test_what_is_there_of_a_request() -> None:
    told = {
        cycle: (has_head(Wire(cycle)), has_request(Wire(cycle)))
        for cycle in (None, Cycle(), Cycle(more_body=True), Cycle(response_complete=True))
    }
    assert list(told.values()) == [(False, False), (True, True), (True, False), (False, False)]
