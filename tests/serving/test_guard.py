"""Clients that go away or dawdle, and what is told of all requests."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import closing

import pytest

from cacheshrink_hybrid.serving.journal import JsonLines
from tests.engine.idle import assert_idle
from tests.serving.live import Live, live_server, until


def sent(live: Live, body: dict, *, part: int | None = None) -> socket.socket:
    """A connection on which a request went out, or its first bytes."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {live.key}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    host, port = live.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)))
    made.sendall(head.encode() + content[:part])
    return made


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


def test_a_body_that_does_not_come() -> None:
    with (
        live_server(body_seconds=0.2) as hasty,
        closing(sent(hasty, {"prompt": "a" * 100}, part=20)) as connection,
    ):
        connection.settimeout(10)
        assert b" 408 " in connection.recv(1000).split(b"\r\n")[0]


def test_stopping_ends_what_is_open() -> None:
    """Open answers have a time to come to their end, after which they are given up."""
    with live_server() as one:
        short = sent(one, {"prompt": "a", "max_tokens": 40, "ignore_eos": True})
        until(lambda: one.llm.statistics.running == 1)
        one.server.should_exit = True
        with closing(short):
            short.settimeout(20)
            answer = b""
            while part := short.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"completion_tokens":40' in answer
    assert one.engine.closed
    assert_idle(one.llm)


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
