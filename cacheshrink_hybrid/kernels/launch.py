"""Launching Triton kernels, or writing down what would be launched.

Recording is how kernels are compiled ahead of time for a GPU that is not there: the list of
launches holds everything that the compiler needs, with the sizes that the launcher chose.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch: a Triton kernel, its grid, all its arguments by name, and compiler options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Recording:
    """Launches for a device of a compute capability (90 for 9.0), written down."""

    capability: int
    launches: list[Launch] = field(default_factory=list)


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording(capability: int) -> Iterator[list[Launch]]:
    """Within the block nothing is launched; the list that is given out collects the launches."""
    record = Recording(capability)
    token = _recording.set(record)
    try:
        yield record.launches
    finally:
        _recording.reset(token)


def launch(
    kernel: Any, grid: tuple[int, ...], *, num_warps: int = 4, num_stages: int = 2, **arguments: Any
) -> None:
    """Launch `kernel` on a grid; a grid without programs is no launch."""
    if 0 in grid:
        return
    record = _recording.get()
    if record is not None:
        record.launches.append(Launch(kernel, grid, arguments, num_warps, num_stages))
        return
    kernel[grid](**arguments, num_warps=num_warps, num_stages=num_stages)


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a device; those of an H200 where there is none to ask."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def has_native_float8(device: torch.device) -> bool:
    """Whether e4m3 numbers are converted in hardware (compute capability 8.9) or interpreted."""
    record = _recording.get()
    if record is not None:
        return record.capability >= 89
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def has_warpgroups(device: torch.device) -> bool:
    """Whether groups of warps multiply together, and blocks of threads have the shared memory that
    feeds them, more than 200 KiB (compute capability 9 and 10)."""
    record = _recording.get()
    if record is not None:
        return record.capability // 10 in (9, 10)
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)
