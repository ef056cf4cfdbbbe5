"""One caller's place in an engine that is stepped by another thread."""

from __future__ import annotations

import asyncio

from .request import Request, RequestOutput

MOST_UNREAD = 16
"""Outputs of a continuation that wait for its caller. What comes beside them stays in the request
as tokens: each output has all tokens of its answer so far."""


class Ticket:
    """One caller's place in the engine: the continuations of a prompt, and what came of them.

    Args:
        news: where requests with something new are noted, in the stepping thread.
        every_token: an output for every token; otherwise one for each continuation, at its end.

    Attributes:
        requests: the continuations.
        need_bytes: of the pool, all of them at their full length.
        closed: the caller wants no more.
    """

    def __init__(self, news: dict[Request, Ticket], *, every_token: bool) -> None:
        self._news = news
        self.every_token = every_token
        self.num_open = 0
        self.requests: list[Request] = []
        self.need_bytes = 0
        self.closed = False
        self._outputs: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()
        self._num_given = self._num_taken = 0
        """The stepping thread's, and the event loop's."""

    def put(self, request: Request) -> None:
        """A request has got a token, or is over."""
        if request.over or self.every_token:
            self._news[request] = self

    # In the stepping thread

    def unread(self, request: Request, *, all_of_them: bool) -> list[RequestOutput]:
        """Outputs of a request that the caller has room for."""
        room = MOST_UNREAD * len(self.requests) - (self._num_given - self._num_taken)
        step = 1 if self.every_token else None
        outputs = request.unread_outputs(step, None if all_of_them else room)
        self._num_given += len(outputs)
        return outputs

    # In the event loop

    def hand_over(self, output: RequestOutput | Exception) -> None:
        """Something new for the caller."""
        self._outputs.put_nowait(output)

    async def take(self) -> RequestOutput:
        """The next output.

        Raises:
            Exception: what ended a request.
        """
        output = await self._outputs.get()
        if isinstance(output, Exception):
            raise output
        self._num_taken += 1
        return output

    @property
    def has_taken_all(self) -> bool:
        """Whether nothing waits for the caller, who may have been too slow for more."""
        return self._num_taken == self._num_given
