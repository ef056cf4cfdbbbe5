"""Clients that go away or dawdle, and what is told of all requests."""

from __future__ import annotations

import json
import logging
from contextlib import closing

import pytest

from cacheshrink_hybrid.serving.journal import JsonLines
from tests.serving.live import Live, live_server, until
from tests.serving.raw import answer_on, sent


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
