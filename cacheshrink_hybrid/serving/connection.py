"""A client's connection, on which what is no HTTP gets an error object as well."""

from __future__ import annotations

import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .faults import NO_HTTP


class Connection(H11Protocol):
    """A connection of uvicorn's."""

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request, unless an answer is under way, and hang up."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = json.dumps(NO_HTTP.json()).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(content))),
                ("Connection", "close"),
            ]
            answer = h11.Response(status_code=NO_HTTP.status, headers=headers)
            for part in (answer, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()
