"""Signs of life while something takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .journal import note

EVERY_SECONDS = 10.0


@contextmanager
def told(event: str, every: float = EVERY_SECONDS, **fields: Any) -> Iterator[None]:
    """Write a line of the log at the beginning of a block, and others as long as it lasts, which
    have the seconds that it took so far.

    Args:
        every: seconds between two lines.
        fields: of each line.
    """
    note(event, **fields)
    began, over = time.perf_counter(), threading.Event()

    def tell() -> None:
        while not over.wait(every):
            note(event, **fields, seconds=round(time.perf_counter() - began, 1))

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
