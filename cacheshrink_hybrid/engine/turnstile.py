"""A lock that threads pass in the order in which they came."""

from __future__ import annotations

import os
import threading
from collections import deque

from ..errors import NotSupportedError


class Turnstile:
    """Lets one thread in at a time, first come, first served.

    A plain lock mostly goes to the thread that has just given it back; this one sends it to the end
    of the queue. It is not reentrant: a second entry of the thread inside is refused.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, object]] = deque()
        """Thread ids, each with a mark of its own; the first one is inside."""

    def __enter__(self) -> None:
        self._check_process()
        ticket = (threading.get_ident(), object())
        try:
            with self._changed:
                if self._queue and self._queue[0][0] == ticket[0]:
                    raise NotSupportedError(
                        "the engine was called from within one of its own steps (a hook of the "
                        "model, or a signal handler); call it between steps"
                    )
                self._queue.append(ticket)
                self._changed.wait_for(lambda: self._queue[0] is ticket)
        except BaseException:  # such as an interrupt; the others must not wait for this thread
            with self._changed:
                if ticket in self._queue:
                    self._queue.remove(ticket)
                    self._changed.notify_all()
            raise

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()

    def try_enter(self) -> bool:
        """Go in if nobody is inside or waits; never blocks, so that finalizers may ask. Whoever got
        in leaves by `__exit__`."""
        if self._queue:
            return False
        self._check_process()
        with self._changed:
            if self._queue:
                return False
            self._queue.append((threading.get_ident(), object()))
            return True

    def __reduce__(self) -> tuple[type[Turnstile], tuple[()]]:
        """Copies have nobody inside."""
        return Turnstile, ()

    def _check_process(self) -> None:
        """Locks of a forked process that its parent held would never be given back."""
        if os.getpid() == self._pid:
            return
        if self._queue:
            raise NotSupportedError(
                "this process was forked while the engine made a step, whose outcome it cannot "
                "know; make a new LLM here, or fork while the engine rests"
            )
        self._changed = threading.Condition()
        self._pid = os.getpid()
