"""Clients that go away or dawdle, and what is told of all requests."""

from __future__ import annotations

import json
import logging
import time
from contextlib import closing

import pytest

from cacheshrink_hybrid.serving.journal import JsonLines
from tests.serving.live import Live, live_server, until
from tests.serving.raw import answer_on, connection_to, request_of, sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_request(live: Live, stream: bool) -> None:
    body = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": stream, "n": 3}
    with closing(sent(live, body)):
        until(lambda: live.llm.statistics.running == 3)
    until(lambda: live.llm.statistics.running == 0)
    assert live.engine.open.requests == 0


def test_a_client_that_goes_away_before_it_has_sent_all(live: Live) -> None:
    with closing(sent(live, {"prompt": "a" * 100}, part=20)):
        pass
    with live.http() as http:
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("trickles", [False, True])
def test_a_body_that_does_not_come(trickles: bool) -> None:
    """All of a body has one time, however it comes; the connection is closed behind the answer."""
    with (
        live_server(body_seconds=0.5) as hasty,
        closing(sent(hasty, {"prompt": "a" * 10_000}, part=20)) as connection,
    ):
        answer = answer_on(connection, trickle=b"a" if trickles else b"")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"more --body-seconds" in answer


def test_a_body_of_two_lengths(live: Live) -> None:
    """Whoever stands between reads the one, and a server the other: neither is right."""
    chunks = b"4\r\n{} \n\r\n0\r\n\r\n"
    with closing(connection_to(live)) as connection:
        head = request_of(live, {}, "Transfer-Encoding: chunked", part=0)
        connection.sendall(head + chunks)
        answer = answer_on(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Length" in answer and b"invalid_http" in answer


TOO_LONG = {
    "as it says": {"part": 20, "headers": ()},
    "as it says, if it may be sent": {"part": 0, "headers": ("Expect: 100-continue",)},
    "without an end": {"part": 20, "headers": ("Transfer-Encoding: chunked",)},
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_body_that_is_too_long_is_not_waited_for(name: str) -> None:
    """It is refused once that is known, not when its time is over; one that is only somewhat too
    long is read first."""
    case = TOO_LONG[name]
    with (
        live_server(max_body_bytes=1000, body_seconds=60) as live,
        closing(connection_to(live)) as connection,
    ):
        whole = request_of(live, {"prompt": "a" * 9000}, *case["headers"], part=case["part"])
        trickle = b""
        if "chunked" in "".join(case["headers"]):
            head = whole.partition(b"\r\n\r\n")[0]
            lines = [one for one in head.split(b"\r\n") if b"Content-Length" not in one]
            whole = b"\r\n".join([*lines, b"", b""])
            trickle = b"400\r\n" + b"a" * 0x400 + b"\r\n"
        began = time.monotonic()
        connection.sendall(whole)
        answer = answer_on(connection, trickle)
        assert time.monotonic() - began < 30
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"body_too_large"' in answer


def test_a_body_that_says_it_is_too_long_and_does_not_come() -> None:
    with (
        live_server(max_body_bytes=1000, body_seconds=0.5) as live,
        closing(sent(live, {"prompt": "a" * 2000}, part=20)) as connection,
    ):
        assert answer_on(connection).startswith(b"HTTP/1.1 413 ")


def test_each_request_has_a_line_in_the_log(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cacheshrink_hybrid.serving"), live.http() as http:
        http.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2, "temperature": 0})
        http.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2, "stream": True})
        http.post("/v1/completions", json={"prompt": 5})
        until(lambda: len([r for r in caplog.records if r.message == "request"]) == 3)
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    lines = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in lines] == [200, 200, 400]
    for line in lines[:2]:
        assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 2)
        assert line["path"] == "/v1/completions" and line["seconds"] >= 0
        assert line["id"].startswith("cmpl-")
