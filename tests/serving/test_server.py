"""When the server hangs up, and how it stops."""

from __future__ import annotations

import logging
import signal
import socket
import time
from contextlib import ExitStack, closing

import pytest

from tests.engine.idle import assert_idle
from tests.serving.live import live_server, until
from tests.serving.raw import answer_on, connection_to, request_of, sent

WHOLE = {"prompt": "a", "max_tokens": 1}
LONG = {"prompt": "a", "max_tokens": 60, "ignore_eos": True}
UNFINISHED = {
    "nothing": lambda live: b"",
    "half a head": lambda live: request_of(live, WHOLE)[:40],
    "half a body": lambda live: request_of(live, WHOLE, part=8),
    "a body that asks first": lambda live: request_of(live, WHOLE, "Expect: 100-continue", part=0),
    "half a head behind a request": lambda live: request_of(live, WHOLE) + b"POST /v1",
    "half a body behind a request": lambda live: (
        request_of(live, WHOLE) + request_of(live, WHOLE, part=8)
    ),
}
"""What clients leave at, by its name."""


def test_stopping_ends_what_is_open() -> None:
    """Open answers have a time to come to their end, after which they are given up."""
    with live_server() as one:
        short = sent(one, {"prompt": "a", "max_tokens": 40, "ignore_eos": True})
        until(lambda: one.llm.statistics.running == 1)
        one.server.should_exit = True
        with closing(short):
            answer = answer_on(short)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"completion_tokens":40' in answer
    assert one.engine.closed
    assert_idle(one.llm)


def test_stopping_does_not_wait_for_requests_that_do_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that came get their answers, which may take longer than the others are waited for."""
    monkeypatch.setattr("cacheshrink_hybrid.serving.server.LAST_SECONDS", 0.2)
    with ExitStack() as open_ones:
        with live_server(stop_seconds=60) as live:
            for unfinished in UNFINISHED.values():
                connection = open_ones.enter_context(closing(connection_to(live)))
                connection.sendall(unfinished(live))
            until(lambda: len(live.server.server_state.connections) == len(UNFINISHED))
            until(lambda: live.llm.statistics.running == 0)
            answered = open_ones.enter_context(closing(sent(live, LONG | {"n": 2})))
            until(lambda: live.llm.statistics.running == 2)
            began = time.monotonic()
            live.server.should_exit = True
            assert b'"completion_tokens":120' in answer_on(answered)
        assert time.monotonic() - began < 40
    assert_idle(live.llm)


def test_a_request_that_is_on_its_way_when_the_server_stops() -> None:
    with live_server(stop_seconds=60) as live:
        whole = request_of(live, WHOLE)
        with closing(connection_to(live)) as connection:
            connection.sendall(whole[:-5])
            until(lambda: len(live.server.server_state.tasks) == 1)
            live.server.should_exit = True
            until(lambda: not live.server.servers[0].is_serving())
            connection.sendall(whole[-5:])
            assert answer_on(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("stream", [False, True])
def test_answers_that_are_given_up_when_the_server_stops(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients get an error object, whole or in the stream, and the log no stack."""
    endless = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": stream}
    with (
        caplog.at_level(logging.INFO),
        live_server(stop_seconds=0) as live,
        closing(sent(live, endless)) as connection,
    ):
        until(lambda: live.llm.statistics.running == 1)
        live.server.should_exit = True
        head, _, body = answer_on(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 " if stream else b"HTTP/1.1 503 ")
    assert b'"code":"stopping"' in body.replace(b" ", b"")
    assert not any(record.exc_info for record in caplog.records)
    assert_idle(live.llm)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_gives_up_what_is_open(told: signal.Signals) -> None:
    endless = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with live_server(stop_seconds=600) as live, closing(sent(live, endless)) as connection:
        until(lambda: live.llm.statistics.running == 1)
        live.server.handle_exit(told, None)
        live.server.handle_exit(told, None)
        assert not live.server.force_exit
        assert b'"code":"stopping"' in answer_on(connection).replace(b" ", b"")
        live.server._captured_signals.clear()  # or this thread would be told as well
    assert_idle(live.llm)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_that_nobody_waits_for_are_told_apart(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    endless = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": stream}
    with caplog.at_level(logging.INFO), live_server() as live:
        with closing(sent(live, endless)) as connection:
            until(lambda: live.llm.statistics.running == 1)
            if stream:
                assert connection.recv(64).startswith(b"HTTP/1.1 200 ")
        until(lambda: live.llm.statistics.running == 0)
        until(lambda: any(record.getMessage() == "request" for record in caplog.records))
    (said,) = [record.fields for record in caplog.records if record.getMessage() == "request"]
    assert said["status"] == 499


@pytest.mark.parametrize("trickle", [b"", b"a"], ids=["still", "trickling"])
@pytest.mark.parametrize("begun", ["nothing", "half a head", "half a head behind a request"])
def test_heads_that_do_not_come(begun: str, trickle: bytes) -> None:
    with (
        live_server(wait_seconds=0.3) as hasty,
        closing(connection_to(hasty)) as connection,
    ):
        connection.sendall(UNFINISHED[begun](hasty))
        answer = answer_on(connection, trickle)
        assert answer.count(b"HTTP/1.1 ") == (" behind " in begun)
        until(lambda: not hasty.server.server_state.connections)


def test_clients_that_do_not_read_are_left() -> None:
    """Outputs wait in the engine, and connections for as long as they may."""
    with live_server(wait_seconds=0.4, stop_seconds=60, send_buffer=4096) as hasty:
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with closing(connection_to(hasty)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request_of(hasty, body | {"logprobs": 20}))
            until(lambda: hasty.llm.statistics.running == 1)
            until(lambda: not hasty.server.server_state.connections)
            until(lambda: hasty.engine.open.requests == 0)
    assert_idle(hasty.llm)
