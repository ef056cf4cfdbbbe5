"""What is no HTTP is answered in the form of all errors, and the server lives on."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from tests.serving.live import Live
from tests.serving.raw import answer_on, connection_to, request_of

CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
NO_HTTP = {
    "words": b"how do you do\r\n\r\n",
    "the beginning of TLS": bytes.fromhex("16030100c8010000c4"),
    "a body without a length of its parts": CHUNKED + b"nonsense\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_it_is_told_as_an_error_object(live: Live, name: str) -> None:
    with closing(connection_to(live)) as connection:
        connection.sendall(NO_HTTP[name])
        head, _, body = answer_on(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"
    with live.http() as http:
        assert http.get("/health").status_code == 200


def test_it_ends_the_connection_behind_an_answer(live: Live) -> None:
    """What comes behind a whole request is read when that is answered."""
    whole = request_of(live, {"prompt": "a", "max_tokens": 2, "stream": True})
    with closing(connection_to(live)) as connection:
        connection.sendall(whole + b"nonsense\r\n\r\n")
        answer = answer_on(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"[DONE]" in answer
    assert b"invalid_http" in answer
