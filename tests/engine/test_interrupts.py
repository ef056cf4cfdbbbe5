"""Signals wait for the end of a block, and none of them is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from cacheshrink_hybrid.engine.interrupts import SIGNALS, signals_held

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="needs the signals of Unix")


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Numbers of signals, as they are handled; that of SIGUSR2 raises."""
    numbers: list[int] = []

    def note(number: int, _: object) -> None:
        numbers.append(number)
        if number == signal.SIGUSR2:
            raise ZeroDivisionError

    names = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(number, note) for number in names]
    yield numbers
    for number, handler in zip(names, before, strict=True):
        signal.signal(number, handler)


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


def test_a_signal_waits(handled: list[int]) -> None:
    before = handlers()
    with signals_held():
        signal.raise_signal(signal.SIGUSR1)
        assert handled == []
    assert handled == [signal.SIGUSR1]
    assert handlers() == before


def test_the_second_one_does_not(handled: list[int]) -> None:
    with signals_held():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert handled == [signal.SIGUSR1]
    assert handled == [signal.SIGUSR1] * 2


def test_what_handlers_raise_comes_out_at_the_end(handled: list[int]) -> None:
    before, reached = handlers(), False
    with pytest.raises(ZeroDivisionError), signals_held():
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR1)
        reached = True
    assert reached
    assert sorted(handled) == sorted([signal.SIGUSR1, signal.SIGUSR2])
    assert handlers() == before


def test_errors_of_the_block_come_out_beside_signals(handled: list[int]) -> None:
    with pytest.raises(KeyError), signals_held():
        signal.raise_signal(signal.SIGUSR1)
        raise KeyError
    assert handled == [signal.SIGUSR1]


def test_blocks_within_blocks(handled: list[int]) -> None:
    with signals_held():
        with signals_held():
            signal.raise_signal(signal.SIGUSR1)
        assert handled == []
    assert handled == [signal.SIGUSR1]


def test_handlers_of_the_block_stay(handled: list[int]) -> None:
    with signals_held():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), signals_held():
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached


def test_other_threads_handle_no_signals(handled: list[int]) -> None:
    found = []

    def look() -> None:
        with signals_held():
            found.extend(handlers())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == handlers()
