"""Requests written by hand, for clients that behave badly."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

from tests.serving.live import Live


def connection_to(live: Live) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def request_of(live: Live, body: dict, *headers: str, part: int | None = None) -> bytes:
    """A completion that is asked for, or it up to the first bytes of the body."""
    content = json.dumps(body).encode()
    lines = [
        "POST /v1/completions HTTP/1.1",
        "Host: here",
        "Content-Type: application/json",
        f"Authorization: Bearer {live.key}",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content[:part]


def sent(live: Live, body: dict, *headers: str, part: int | None = None) -> socket.socket:
    """A connection on which `request_of` went out."""
    made = connection_to(live)
    made.sendall(request_of(live, body, *headers, part=part))
    return made


def answer_on(connection: socket.socket, trickle: bytes = b"") -> bytes:
    """What comes until the server closes the connection.

    Args:
        trickle: sent again and again meanwhile.
    """
    answer, end = b"", time.monotonic() + 20
    connection.settimeout(0.05 if trickle else 20)
    with suppress(ConnectionError):
        while True:
            try:
                part = connection.recv(65536)
            except TimeoutError:
                assert time.monotonic() < end, answer
                connection.sendall(trickle)
                continue
            if not part:
                break
            answer += part
    return answer
