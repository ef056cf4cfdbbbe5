"""Threads of kernels."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest
import torch

from cacheshrink_hybrid.kernels.workers import in_parallel


def test_one_thread_starts_none() -> None:
    torch.set_num_threads(1)
    ran: list[int] = []
    in_parallel([lambda: ran.append(threading.get_ident())] * 3)
    assert ran == [threading.get_ident()] * 3


def test_all_tasks_run_and_the_first_one_here() -> None:
    torch.set_num_threads(3)
    barrier, ran = threading.Barrier(3), {}

    def task(number: int) -> None:
        barrier.wait(timeout=30)  # all three at a time
        ran[number] = threading.get_ident()

    in_parallel([lambda number=number: task(number) for number in range(3)])  # type: ignore[misc]
    assert ran[0] == threading.get_ident()
    assert len(set(ran.values())) == 3


def test_what_a_task_raises_is_raised_when_all_are_done() -> None:
    torch.set_num_threads(2)
    done: list[int] = []

    def fail() -> None:
        raise ValueError("of a task")

    with pytest.raises(ValueError, match="of a task"):
        in_parallel([lambda: done.append(0), fail])
    with pytest.raises(ValueError, match="of a task"):
        in_parallel([fail, lambda: done.append(1)])
    assert done == [0, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    ran: list[int] = []
    in_parallel([lambda: ran.append(0), lambda: ran.append(1)])
    child = multiprocessing.get_context("fork").Process(target=_in_child)
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0


def _in_child() -> None:
    ran: list[int] = []
    in_parallel([lambda: ran.append(0), lambda: ran.append(1)])
    assert sorted(ran) == [0, 1]
