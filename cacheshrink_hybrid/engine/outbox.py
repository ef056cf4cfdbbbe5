"""Where the outputs of one caller's requests wait until that caller comes for them."""

from __future__ import annotations

from .request import Request, RequestOutput


class Outbox:
    """Requests of one caller, and which of them have news. Used by one thread at a time.

    Args:
        every_token: an output for every token; otherwise one has all tokens since the last one.
        only_finished: outputs of finished requests only.

    Attributes:
        num_open: requests that are not finished.
    """

    def __init__(self, *, every_token: bool = False, only_finished: bool = False) -> None:
        self.every_token = every_token
        self.only_finished = only_finished
        self.num_open = 0
        self._news: dict[Request, None] = {}

    def __bool__(self) -> bool:
        """Whether there are news."""
        return bool(self._news)

    @property
    def requests(self) -> list[Request]:
        """Those with news."""
        return list(self._news)

    def put(self, request: Request) -> None:
        """A request has got a token, or is over."""
        if request.over or not self.only_finished:
            self._news[request] = None

    def discard(self, request: Request) -> None:
        """Forget the news of a request."""
        self._news.pop(request, None)

    def take(self) -> list[RequestOutput]:
        """All outputs that wait.

        Raises:
            Exception: what went wrong with a request, once its tokens have been taken, or without
                them where only finished ones are wanted. Outputs of other requests stay.
        """
        outputs: list[RequestOutput] = []
        for request in list(self._news):
            unfinished = request.error is not None and self.only_finished
            step = 1 if self.every_token else None
            found = [] if unfinished else request.unread_outputs(step)
            outputs += found
            if request.error is None:
                del self._news[request]
            elif not found and not outputs:
                del self._news[request]
                raise request.error
        return outputs
