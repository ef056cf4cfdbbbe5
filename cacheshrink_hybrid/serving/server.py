"""A server on a port, until it is told to stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from ..errors import ConfigError
from .journal import note


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
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror}); give another --port, or 0 "
            "for any that is free"
        ) from error
    return made


class Server(uvicorn.Server):
    """Serves an application; SIGINT and SIGTERM let open answers come to their end.

    Args:
        app: to serve.
        stop_seconds: that open answers have then.
        ready: called when requests are taken.
    """

    def __init__(
        self, app: ASGIApp, *, stop_seconds: int, ready: Callable[[], None] | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=stop_seconds,
            )
        )
        self._ready = ready

    def serve_until_told(self, listening: socket.socket) -> None:
        """Serve on a socket until a signal comes. SIGTERM ends it as a return does, Ctrl-C by
        `KeyboardInterrupt`. In the main thread."""
        # uvicorn raises the signals that it caught once more, for those who had handlers before.
        before = signal.signal(signal.SIGTERM, self.handle_exit)
        try:
            self.run([listening])
        finally:
            signal.signal(signal.SIGTERM, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None and self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        note("stopping", open_connections=len(self.server_state.connections))
        await super().shutdown(sockets)
        note("stopped")
