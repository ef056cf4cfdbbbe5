"""Threads for kernels that let go of the interpreter's lock: as many as torch is to use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

_executors: dict[int, ThreadPoolExecutor] = {}
"""By number of threads."""


def num_shares(amount: int, least: int) -> int:
    """Shares to cut so much work into, none smaller than `least` where there are several."""
    return max(1, min(torch.get_num_threads(), amount // least))


def in_parallel(tasks: Sequence[Callable[[], object]]) -> None:
    """Run tasks that do not depend on each other, at most `torch.get_num_threads()` at a time; the
    first one here. Returns when all are done; raises what one of them raised."""
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            task()
        return
    if threads not in _executors:
        _executors[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="kernels")
    found: list[Future] = [_executors[threads].submit(task) for task in tasks[1:]]
    try:
        tasks[0]()
    finally:
        wait(found)
    for future in found:
        future.result()


# Threads do not outlive a fork, and what waits for them would wait for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_executors.clear)
