"""What takes long says so."""

from __future__ import annotations

import json
import logging
import threading
from io import StringIO

import pytest

from cacheshrink_hybrid.serving.journal import LOGGER, start_journal
from cacheshrink_hybrid.serving.progress import EVERY_SECONDS, told
from tests.serving.live import until


@pytest.fixture
def lines():
    """Of a log of its own."""
    names = (LOGGER.name, "uvicorn")
    before = [(logging.getLogger(x), dict(vars(logging.getLogger(x)))) for x in names]
    stream = StringIO()
    start_journal(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for logger, state in before:
        logger.handlers, logger.propagate = state["handlers"], state["propagate"]
        logger.setLevel(state["level"])


def test_lines_come_as_long_as_it_lasts(lines) -> None:
    assert EVERY_SECONDS <= 10
    with told("converting", every=0.01, ratio=4):
        until(lambda: len(lines()) > 3)
    count = len(lines())
    first, *rest = lines()
    assert first["event"] == "converting" and "seconds" not in first
    assert all(one["event"] == "converting" and one["ratio"] == 4 for one in rest)
    seconds = [one["seconds"] for one in rest]
    assert seconds == sorted(seconds)
    assert "progress" not in [thread.name for thread in threading.enumerate()]
    assert len(lines()) == count


def test_errors_end_it(lines) -> None:
    with pytest.raises(ZeroDivisionError), told("loading", every=60):
        raise ZeroDivisionError
    assert [one["event"] for one in lines()] == ["loading"]
    assert "progress" not in [thread.name for thread in threading.enumerate()]
