"""Threads go in one by one, in order, and an interrupted one keeps nobody waiting."""

from __future__ import annotations

import threading
import time

import pytest

from cacheshrink_hybrid.engine.turnstile import Turnstile
from cacheshrink_hybrid.errors import NotSupportedError


def started(target) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_first_come_first_served() -> None:
    turnstile, order = Turnstile(), []

    def enter(number: int) -> None:
        with turnstile:
            order.append(number)

    with turnstile:
        threads = []
        for number in range(6):
            threads.append(started(lambda number=number: enter(number)))
            wait_until(lambda number=number: len(turnstile._queue) == number + 2)
        assert order == []
    for thread in threads:
        thread.join(20)
    assert order == list(range(6))


def test_nobody_comes_back_before_those_who_wait() -> None:
    turnstile, order = Turnstile(), []

    def enter() -> None:
        with turnstile:
            order.append("other")

    with turnstile:
        thread = started(enter)
        wait_until(lambda: len(turnstile._queue) == 2)
    with turnstile:
        order.append("again")
    thread.join(20)
    assert order == ["other", "again"]


def test_whoever_is_inside_cannot_enter_again() -> None:
    turnstile = Turnstile()
    with turnstile:
        with pytest.raises(NotSupportedError, match="within one of its own steps"):
            turnstile.__enter__()
        assert not turnstile.try_enter()
    assert turnstile.try_enter()
    turnstile.__exit__()
    with turnstile:
        pass


def test_an_interrupted_wait_is_given_up(monkeypatch) -> None:
    turnstile = Turnstile()
    with turnstile:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        def wait() -> None:
            with pytest.raises(KeyboardInterrupt):
                turnstile.__enter__()

        monkeypatch.setattr(turnstile._changed, "wait_for", interrupted)
        started(wait).join(20)
        monkeypatch.undo()
        assert len(turnstile._queue) == 1
    with turnstile:
        pass


def test_an_error_inside_lets_the_next_one_in() -> None:
    turnstile = Turnstile()
    with pytest.raises(ZeroDivisionError), turnstile:
        raise ZeroDivisionError
    assert turnstile.try_enter()


def test_a_process_forked_within_a_step_is_told(monkeypatch) -> None:
    turnstile = Turnstile()
    with turnstile:
        monkeypatch.setattr("os.getpid", lambda: -1)
        with pytest.raises(NotSupportedError, match="was forked while"):
            turnstile.__enter__()
        monkeypatch.undo()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with turnstile:
        pass
