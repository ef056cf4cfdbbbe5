"""What every request passes before a route sees it, and every answer after: an ASGI application
around another."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .faults import CLIENT_GONE, Fault, fault_of
from .journal import note
from .metrics import Counts

OPEN_PATHS = ("/", "/health")
"""What nobody needs a key for."""
KNOWN_PATHS = (
    *OPEN_PATHS,
    "/pool",
    "/metrics",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
)


DRAINED = 4
"""Times `max_body_bytes`: bodies of up to so much are read to their end before they are refused."""


class Guard:
    """Checks keys, reads bodies within limits, and sees that errors leave as error objects.

    Each request is counted and gets a line in the log, where an answer that the client did not wait
    for has a status of its own, whatever it began with.

    Args:
        app: with the routes.
        counts: of the server.
        api_keys: one of which must come as `Authorization: Bearer`; empty for none.
        max_body_bytes: of a request.
        body_seconds: that a body may take to arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        counts: Counts,
        *,
        api_keys: Sequence[str] = (),
        max_body_bytes: int,
        body_seconds: float,
    ) -> None:
        self.app = app
        self.counts = counts
        self._keys = [key.encode() for key in api_keys]
        self._max_body_bytes = max_body_bytes
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, ended = time.perf_counter(), 0, False
        notes = scope.setdefault("state", {}).setdefault("notes", {})

        async def watched(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            self._check_key(scope)
            body = await self._body(Headers(scope=scope), receive)
            await self.app(scope, _replayed(body, receive), watched)
        except Exception as error:
            fault = fault_of(error)
            if fault.status == 500:
                note("internal error", level=logging.ERROR, error=error, path=scope["path"])
            if status == 0:
                await fault.response()(scope, receive, watched)
        finally:
            status = status if ended else CLIENT_GONE
            path = scope["path"] if scope["path"] in KNOWN_PATHS else "other"
            self.counts.requests[path, status] += 1
            note(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                client=(scope.get("client") or ("",))[0],
                seconds=round(time.perf_counter() - began, 4),
                **notes,
            )

    def _check_key(self, scope: Scope) -> None:
        if not self._keys or scope["path"] in OPEN_PATHS:
            return
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        known = [secrets.compare_digest(key.strip().encode(), own) for own in self._keys]
        if kind.lower() != "bearer" or not any(known):
            raise Fault(
                401,
                "no known key came as 'Authorization: Bearer KEY'; send the one that the server "
                "was started with",
                "invalid_api_key",
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. One that is too long is read to its end as well, and not kept, unless it
        is several times too long or waits to be asked for: clients look for an answer when they
        have sent all."""
        if "content-length" in headers and "transfer-encoding" in headers:
            raise Fault(
                400,
                "a body comes with Content-Length or with Transfer-Encoding, and this one with "
                "both; send one of them",
                "invalid_http",
            )
        due = int(headers.get("content-length", 0))
        asks_first = headers.get("expect", "").lower() == "100-continue"
        most = self._max_body_bytes if asks_first else DRAINED * self._max_body_bytes
        parts: list[bytes] = []
        size, more = 0, due <= most
        try:
            async with asyncio.timeout(self._body_seconds):
                while more and size <= DRAINED * self._max_body_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Fault(400, "the body ended before its time; send it whole")
                    part = message.get("body", b"")
                    size, more = size + len(part), message.get("more_body", False)
                    if size <= self._max_body_bytes:
                        parts.append(part)
        except TimeoutError as error:
            if max(size, due) <= self._max_body_bytes:
                raise Fault(
                    408,
                    f"{size} bytes of the body came in {self._body_seconds:g} seconds, and there "
                    "are more; send it faster, or start the server with more --body-seconds",
                    "timeout",
                ) from error
        if max(size, due) > self._max_body_bytes:
            raise Fault(
                413,
                f"the body has {max(size, due)} bytes{' or more' if more else ''}, and "
                f"{self._max_body_bytes} are taken; send less, or start the server with a larger "
                "--max-body",
                "body_too_large",
            )
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body at once, and then what comes, which is the end of the connection."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
