"""Signals that wait until a step is over.

Python runs the handlers of signals between any two instructions of the main thread, and those of
Ctrl-C, of timeouts and of shutdowns raise. Book-keeping that is left halfway cannot be trusted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")
"""Signals whose handlers are known to raise; not every system has all."""
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


@contextmanager
def signals_held() -> Iterator[None]:
    """Let the handlers of signals run at the end of the block. Whoever sends one a second time
    does not want to wait: it is handled at once. Nothing to do in threads, which handle none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = [(number, signal.getsignal(number)) for number in SIGNALS]
    handlers: dict[int, Any] = {number: handler for number, handler in found if callable(handler)}
    came: dict[int, Callable[[], Any]] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        if number in came:
            handlers[number](number, frame)
        came[number] = partial(handlers[number], number, frame)

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is hold:
                signal.signal(number, handler)
        with ExitStack() as all_of_them:
            for handle in came.values():
                all_of_them.callback(handle)
