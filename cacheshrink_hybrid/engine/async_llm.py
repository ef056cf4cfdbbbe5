"""The engine for asyncio: one thread makes all steps, coroutines get the outputs.

    async with AsyncLLM(llm) as engine:
        async for output in engine.stream("Once upon a time", SamplingParams(max_tokens=32)):
            print(output.text)

Nothing that takes long happens in the event loop: prompts are read in a thread of their own, and
requests reach the stepping thread through an inbox, which it empties between steps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future as ConcurrentFuture
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from ..errors import ConfigError, EngineClosedError, QueueFullError
from ..freed_memory import return_freed_memory
from ..integers import check_counts
from .llm import LLM
from .outbox import Outbox
from .prompts import single_prompt
from .request import Request, RequestOutput
from .sampling_params import SamplingParams
from .ticket import Ticket

MAX_OPEN = 1024
OPEN_POOLS = 8.0
"""Bytes of open requests beside those of the pool: more would wait for long."""
RETURN_SECONDS = 10.0
"""After which freed memory is given back, under load and once there is nothing to do."""

Read = TypeVar("Read")
News = list[tuple[Ticket, RequestOutput | Exception]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequests:
    """What callers wait for, at the moment.

    Attributes:
        requests: continuations, running or waiting.
        need_bytes: of the pool, all of them at their full length.
    """

    requests: int
    need_bytes: int


class AsyncLLM:
    """An engine for the coroutines of one event loop, open within `async with`.

    Args:
        llm: stepped by this object's thread while it is open.
        max_open: most requests that run and wait, each of `n` continuations counted.
        max_open_bytes: most bytes of the pool that they need, at their full lengths; None for 8
            pools.
    """

    def __init__(
        self, llm: LLM, *, max_open: int = MAX_OPEN, max_open_bytes: int | None = None
    ) -> None:
        check_counts(max_open=max_open)
        self.llm = llm
        self.max_open = max_open
        pool_bytes = llm.store.pool.nbytes
        self.max_open_bytes = (
            int(OPEN_POOLS * pool_bytes) if max_open_bytes is None else max_open_bytes
        )
        self._tickets: set[Ticket] = set()
        """Of callers that still wait; the event loop's."""
        self._inbox: deque[tuple[Callable[[list[Request]], None], list[Request]]] = deque()
        self._wake = threading.Event()
        self._news: dict[Request, Ticket] = {}
        """The stepping thread's."""
        self._closed = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._reader = ThreadPoolExecutor(1, "prompts")
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give up what is open, once the step under way is done."""
        assert self._reader is not None and self._thread is not None
        self.close()
        await asyncio.to_thread(self._thread.join)
        self._reader.shutdown()

    def close(self) -> None:
        """Take nothing more, and let all that is open end with `EngineClosedError` behind the step
        under way. May be called before the end of `async with`, in the event loop."""
        self._closed = True
        self._wake.set()

    @property
    def closed(self) -> bool:
        """Whether requests are refused."""
        return self._closed

    @property
    def open(self) -> OpenRequests:
        """What is open now."""
        return OpenRequests(
            requests=sum(len(ticket.requests) for ticket in self._tickets),
            need_bytes=sum(ticket.need_bytes for ticket in self._tickets),
        )

    async def read(self, function: Callable[..., Read], *given: Any, **settings: Any) -> Read:
        """What a function returns that reads prompts, in the thread for them."""
        if self._closed:
            raise _closed_error()
        assert self._loop is not None
        return await self._loop.run_in_executor(self._reader, partial(function, *given, **settings))

    async def generate(
        self, prompt: Any, params: SamplingParams | None = None
    ) -> list[RequestOutput]:
        """The finished continuations of one prompt, in order. Raises what `stream` raises."""
        outputs = [output async for output in self._serve(prompt, params, every_token=False)]
        return sorted(outputs, key=lambda output: output.index)

    async def between_steps(self, function: Callable[[], Read]) -> Read:
        """What a function returns that looks at the engine, in the stepping thread."""
        if self._closed:
            raise _closed_error()
        found: ConcurrentFuture[Read] = ConcurrentFuture()

        def look(_: list[Request]) -> None:
            try:
                found.set_result(function())
            except Exception as error:  # the caller gets it
                found.set_exception(error)

        self._post(look, [])
        return await asyncio.wrap_future(found)

    def stream(
        self, prompt: Any, params: SamplingParams | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        """Outputs of one prompt, one for every token of each continuation. Closing it, or a
        cancelled coroutine, aborts the request.

        Raises:
            ConfigError, CacheFullError: the request can never be served, or needs alone more than
                may be open.
            QueueFullError: too much is open already.
            EngineClosedError: the engine is closed, or closes before the request is over.
            Exception: what went wrong with this request, or with the step that it was in.
        """
        return self._serve(prompt, params, every_token=True)

    async def _serve(
        self, prompt: Any, params: SamplingParams | None, *, every_token: bool
    ) -> AsyncGenerator[RequestOutput, None]:
        ticket = Ticket(self._news, every_token=every_token)
        intake = self.llm._intake
        requests = await self.read(lambda: intake.requests(single_prompt(prompt), params, ticket))
        need_bytes = intake.need_bytes(requests[0].prompt_ids, requests[0].params)
        self.check_alone(len(requests), need_bytes)
        self._check_room(len(requests), need_bytes)
        ticket.requests, ticket.need_bytes = requests, need_bytes
        self._tickets.add(ticket)
        try:
            self._post(self.llm._dispatcher.submit, requests)
            num_finished = 0
            while num_finished < len(requests):
                output = await ticket.take()
                if ticket.has_taken_all:
                    self._wake.set()
                num_finished += output.finished
                yield output
        finally:
            ticket.closed = True
            self._tickets.discard(ticket)
            self._post(self.llm._dispatcher.drop, requests)

    def need_bytes(self, prompt: tuple[int, ...], params: SamplingParams) -> int:
        """Of the pool, for all continuations of a prompt at their full length.

        Raises:
            ConfigError, CacheFullError: the request can never be served.
        """
        return self.llm._intake.need_bytes(prompt, params)

    def check_alone(self, num_requests: int, need_bytes: int) -> None:
        """Refuse what could not be taken even if nothing else were open.

        Args:
            num_requests: continuations that one caller asks for at once.
            need_bytes: of the pool, all of them at their full length.

        Raises:
            ConfigError: it is more than may be open.
        """
        if num_requests > self.max_open:
            raise ConfigError(
                f"the request asks for {num_requests} answers, its prompts times n, and "
                f"{self.max_open} may be open; ask for fewer at once"
            )
        if need_bytes > self.max_open_bytes:
            raise ConfigError(
                f"the request asks for {num_requests} answers that need {need_bytes} bytes of the "
                f"cache at their full lengths, and {self.max_open_bytes} may be open; ask for "
                "fewer answers at once (n, prompts) or for fewer tokens (max_tokens)"
            )

    def _check_room(self, num_requests: int, need_bytes: int) -> None:
        if self._closed:
            raise _closed_error()
        now, pool = self.open, self.llm.store.pool
        fits = now.need_bytes + need_bytes <= self.max_open_bytes
        if not (fits and now.requests + num_requests <= self.max_open):
            raise QueueFullError(
                f"the request asks for {need_bytes} bytes of the cache, and {now.requests} open "
                f"requests for {now.need_bytes}; up to {self.max_open} requests and "
                f"{self.max_open_bytes} bytes may be open on a pool of {pool.nbytes}; try again "
                "later, or ask for fewer tokens"
            )

    def _post(self, act: Callable[[list[Request]], None], requests: list[Request]) -> None:
        self._inbox.append((act, requests))
        self._wake.set()

    # The stepping thread

    def _run(self) -> None:
        mine: set[Request] = set()
        try:
            self._step_until_closed(mine)
        finally:
            self._closed = True
            self._empty_inbox(mine)
            self.llm._dispatcher.give_up(list(mine), _closed_error())
            self._deliver(mine, all_of_it=True)

    def _step_until_closed(self, mine: set[Request]) -> None:
        nobody, returned = Outbox(), time.monotonic()
        while True:
            self._wake.clear()
            if self._closed:
                return
            self._empty_inbox(mine)
            if mine:
                try:
                    self.llm._dispatcher.step(nobody)
                except Exception as error:  # of the model; every caller in the step gets it
                    self.llm._dispatcher.give_up(list(mine), error)
            self._deliver(mine)
            idle = not mine and not self._wake.wait(RETURN_SECONDS)
            if idle or time.monotonic() - returned > RETURN_SECONDS:
                return_freed_memory()
                returned = time.monotonic()
            if idle:
                self._wake.wait()

    def _empty_inbox(self, mine: set[Request]) -> None:
        while self._inbox:
            act, requests = self._inbox.popleft()
            act(requests)
            mine.update(request for request in requests if not request.over)
        mine.difference_update([request for request in mine if request.over])

    def _deliver(self, mine: set[Request], *, all_of_it: bool = False) -> None:
        """Hand what is new over to the event loop, at once. What callers have no room for waits,
        as tokens, until they have taken what they have."""
        news: News = []
        for request, ticket in list(self._news.items()):
            if not ticket.closed:
                outputs = ticket.unread(request, all_of_them=all_of_it)
                news += [(ticket, output) for output in outputs]
                if request.has_unread:
                    continue
                if request.error is not None:
                    news.append((ticket, request.error))
            del self._news[request]
        mine.difference_update([request for request in mine if request.over])
        assert self._loop is not None
        if news and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_hand_over, news)


def _hand_over(news: News) -> None:
    for ticket, output in news:
        ticket.hand_over(output)


def _closed_error() -> EngineClosedError:
    return EngineClosedError(
        "the engine is closed and gives no more outputs; open it, or send the request elsewhere"
    )
