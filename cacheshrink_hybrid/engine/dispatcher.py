"""Whose turn it is to make a step, and whose the outputs are.

Any number of callers, in any threads, share one scheduler. Each has an outbox for the outputs of
its own requests, whoever makes the steps. One caller at a time is inside; what is dropped while
another one is inside, be it by a finalizer in the same thread, goes when that one leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from ..errors import SequenceError
from .interrupts import signals_held
from .outbox import Outbox
from .request import Request, RequestOutput
from .scheduler import Scheduler
from .turnstile import Turnstile


class Dispatcher:
    """Shares out the steps of a scheduler.

    Args:
        scheduler: used by nobody else.
        loose: outbox of requests whose outputs are not waited for.
    """

    def __init__(self, scheduler: Scheduler, loose: Outbox) -> None:
        self._scheduler = scheduler
        self._loose = loose
        self._turnstile = Turnstile()
        self._dropped: deque[Request] = deque()
        self._numbers = count()

    def submit(self, requests: Sequence[Request]) -> None:
        """Let requests wait, all or none; those without an id get one.

        Raises:
            SequenceError: an id is in use.
        """
        with self._turn():
            taken = {request.request_id for request in self._known()}
            for request in requests:
                if request.index:  # a continuation beside the first one, which came before it
                    request.request_id = request.twins[0].request_id
                elif request.request_id is None:
                    request.request_id = next(n for n in self._numbers if n not in taken)
                elif request.request_id in taken:
                    raise SequenceError(
                        f"request id {request.request_id!r} is in use; choose another, or collect "
                        "its last output by step() first"
                    )
                taken.add(request.request_id)
            for request in requests:
                self._scheduler.add(request)

    def abort(self, request_id: Hashable) -> RequestOutput:
        """Stop a request, all continuations of it. Their owner hears of them, except, where nobody
        waits for outputs, of the one that is returned: the first that was not over.

        Raises:
            SequenceError: no such request is waiting or running.
        """
        with self._turn():
            found = [r for r in self._scheduler.requests if r.request_id == request_id]
            if not found:
                raise SequenceError(
                    f"request {request_id!r} is neither waiting nor running; it may have finished"
                )
            first = min(found, key=lambda request: request.index)
            begin, end = first.num_read, first.num_generated
            for request in found:
                self._scheduler.leave(request, "abort")
            if first.outbox is self._loose:
                self._loose.discard(first)
            return first.output(begin, end)

    def forget_prefixes(self) -> None:
        """Let no request take over what was kept until now."""
        with self._turn():
            self._scheduler.store.prefixes.clear()

    def drop(self, requests: Sequence[Request]) -> None:
        """Stop requests that their owner has lost interest in; never blocks."""
        self._dropped.extend(requests)
        with signals_held():
            self._sweep()

    def give_up(self, requests: Sequence[Request], error: Exception) -> None:
        """End requests by an error, which their owners hear of; nothing to do for those over."""
        with self._turn():
            for request in requests:
                self._scheduler.leave(request, None, error)

    def step(self, outbox: Outbox) -> list[RequestOutput]:
        """Make one step; the outputs that wait in `outbox`."""
        with self._turn():
            self._scheduler.step()
            return outbox.take()

    def wait(self, outbox: Outbox) -> list[RequestOutput]:
        """Make steps, in turn with other callers, until there are outputs in `outbox`; none if all
        of its requests are over."""
        while outbox.num_open or outbox:
            with self._turn():
                if not outbox:
                    self._scheduler.step()
                outputs = outbox.take()
            if outputs:
                return outputs
        return []

    # Inside

    def _known(self) -> list[Request]:
        return [*self._scheduler.requests, *self._loose.requests]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with signals_held():
            try:
                with self._turnstile:
                    self._forget_dropped()
                    try:
                        yield
                    finally:
                        self._forget_dropped()
            finally:
                self._sweep()

    def _sweep(self) -> None:
        """Forget what was dropped when nobody was about to leave."""
        while self._dropped and self._turnstile.try_enter():
            try:
                self._forget_dropped()
            finally:
                self._turnstile.__exit__()

    def _forget_dropped(self) -> None:
        while self._dropped:
            self._scheduler.leave(self._dropped.popleft(), "abort")
