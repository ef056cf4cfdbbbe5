"""A server on a port, until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from ..errors import ConfigError
from .connection import Connection
from .journal import note
from .waits import Waits, has_request

LAST_SECONDS = 1.0
"""In which requests that are on their way may still arrive when the server stops."""
TELL_SECONDS = 5
"""In which answers that are given up when the server stops may say so."""
SWITCH_SECONDS = 0.0005
"""After which the event loop lets the engine's thread go on, which has little to do in Python
between two operations of torch. With Python's own 0.005 s it waits for most of a round of events.
"""
LOOK_SECONDS = 0.1
"""Between two looks at connections, as uvicorn has it."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket of this address, which nobody else can take from here on.

    Args:
        port: 0 for any that is free.

    Raises:
        ConfigError: the address is taken, or none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        remedy = (
            "give another --port, or 0 for any that is free"
            if error.errno in (errno.EADDRINUSE, errno.EACCES)
            else "give a --host of this machine, such as 127.0.0.1, or 0.0.0.0 for all that it has"
        )
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror}); {remedy}"
        ) from error
    return made


class Server(uvicorn.Server):
    """Serves an application; SIGINT and SIGTERM let open answers come to their end, a second one of
    them ends these as well, and a third one everything.

    Connections are closed whose clients keep it waiting: with the head of a request, or by reading
    nothing of an answer, for a time; and with any of a request when the server stops.

    Args:
        app: to serve.
        wait_seconds: for a head, and for something to be read.
        stop_seconds: that open answers have when the server stops.
        give_up: called when these are over, or a second signal comes, to end the answers that are
            still open.
        ready: called when requests are taken.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        wait_seconds: float,
        stop_seconds: int,
        give_up: Callable[[], None],
        ready: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=stop_seconds + TELL_SECONDS,
            )
        )
        self._stop_seconds, self._give_up, self._ready = stop_seconds, give_up, ready
        self._waits = Waits(wait_seconds)
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve_until_told(self, listening: socket.socket) -> None:
        """Serve on a socket until a signal comes. SIGTERM ends it as a return does, Ctrl-C by
        `KeyboardInterrupt`. In the main thread."""
        # uvicorn raises the signals that it caught once more, for those who had handlers before.
        before = signal.signal(signal.SIGTERM, self.handle_exit)
        switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            self.run([listening])
        finally:
            sys.setswitchinterval(switch_seconds)
            signal.signal(signal.SIGTERM, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._signals += 1
        self.force_exit = self._signals > 2
        if self._signals == 2 and self._loop is not None:
            self._loop.call_soon_threadsafe(self._end_answers)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._ready is not None and self.started:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        for connection in self._waits.overdue(self._connections(), time.monotonic()):
            connection.transport.abort()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        note("stopping", open_connections=len(self.server_state.connections))
        closing = asyncio.ensure_future(self._close_without_request())
        last = asyncio.get_running_loop().call_later(self._stop_seconds, self._end_answers)
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()
            last.cancel()
            self._loop = None  # signals are raised once more, for handlers of before
        note("stopped")

    def _end_answers(self) -> None:
        note("giving up", open_requests=len(self.server_state.tasks))
        self._give_up()

    async def _close_without_request(self) -> None:
        """Close connections on which no whole request has arrived, and go on looking for them."""
        await asyncio.sleep(LAST_SECONDS)
        while True:
            for connection in self._connections():
                if not has_request(connection):
                    connection.transport.close()
            await asyncio.sleep(LOOK_SECONDS)

    def _connections(self) -> list[Connection]:
        return [one for one in self.server_state.connections if isinstance(one, Connection)]
