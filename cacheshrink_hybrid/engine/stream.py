"""The outputs of one request as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from .dispatcher import Dispatcher
from .outbox import Outbox
from .request import Request, RequestOutput


class Stream(Iterator[RequestOutput]):
    """An output for every token of a request, the last one of each continuation finished; steps
    are made as they are needed. Closing it, or losing it, or an error on the way, aborts the
    request.

    Attributes:
        request_id: of the request.
    """

    def __init__(self, dispatcher: Dispatcher, requests: Sequence[Request], outbox: Outbox) -> None:
        self._dispatcher = dispatcher
        self._requests = requests
        self._outbox = outbox
        self._closed = False
        self._ready: deque[RequestOutput] = deque()
        dispatcher.submit(requests)
        self.request_id = requests[0].request_id

    def __next__(self) -> RequestOutput:
        if self._closed:
            raise StopIteration
        if not self._ready:
            try:
                self._ready.extend(self._dispatcher.wait(self._outbox))
            except BaseException:
                self.close()
                raise
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def close(self) -> None:
        """End the stream, and abort its request if it still runs. From any thread."""
        self._closed = True
        running = [request for request in self._requests if not request.over]
        if running:
            self._dispatcher.drop(running)

    def __del__(self) -> None:
        if hasattr(self, "request_id"):  # was submitted
            self.close()
