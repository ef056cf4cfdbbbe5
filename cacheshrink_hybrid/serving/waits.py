"""Connections on which the server waits for its client."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from .connection import Connection


class Waits:
    """Notes since when clients keep the server waiting.

    Args:
        seconds: that the head of a request may take, from the opening of the connection or the
            end of its last answer; and for which a client may read nothing of what was written.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Connection, tuple[Hashable, float]] = {}

    def overdue(self, connections: Iterable[Connection], now: float) -> list[Connection]:
        """Those that have waited for longer than they may.

        Args:
            connections: all that are open; others are forgotten.
            now: in seconds of a clock that never goes back.
        """
        before, self._since = self._since, {}
        for connection in connections:
            wait = _wait(connection)
            if wait is not None:
                known, since = before.get(connection, (None, now))
                self._since[connection] = wait, since if known == wait else now
        return [one for one, (_, since) in self._since.items() if now - since > self._seconds]


def has_head(connection: Connection) -> bool:
    """Whether the head of a request is there, whose answer is not complete."""
    return connection.cycle is not None and not connection.cycle.response_complete


def has_request(connection: Connection) -> bool:
    """Whether a whole request is there, whose answer is not complete."""
    return has_head(connection) and not connection.cycle.more_body


def _wait(connection: Connection) -> Hashable:
    """What the server waits for, other than at the last look if something happened since; None if
    it is its own turn."""
    transport, idle = connection.transport, not has_head(connection)
    unread = transport.get_write_buffer_size()
    if unread and (idle or transport.is_closing() or connection.flow.write_paused):
        return connection.cycle, unread
    return (connection.cycle, None) if idle else None
