"""How much memory a cache may take: bytes, text such as "2GiB", or a fraction of what is free."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..byte_counts import parse_budget
from ..errors import CacheFullError, ConfigError, NotSupportedError
from ..integers import is_integer

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes of a device's memory."""

    free: int
    total: int


def device_memory(device: torch.device | str = "cpu") -> DeviceMemory:
    """Memory of a CUDA device, or of the host: what a new allocation can take, and all there is.
    On the host, a limit on the process's control group counts as the total.

    Raises:
        NotSupportedError: a device of another type, or a host that does not tell.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What torch has set aside and does not use is free to us.
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return DeviceMemory(free=free + reserved, total=total)
    if device.type != "cpu":
        raise NotSupportedError(
            f"free memory of device {device} is unknown; give the budget in bytes or as '2GiB'"
        )
    free, total = _host_memory()
    limit, used = _cgroup_memory()
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - used))
    return DeviceMemory(free=free, total=total)


def _host_memory() -> tuple[int, int]:
    """(available, total)."""
    if MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        available, total = (
            int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal")
        )
        return available, total
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError) as error:
        raise NotSupportedError(
            "this system does not tell how much memory is free; give the budget in bytes or as "
            "'2GiB'"
        ) from error


def _cgroup_memory() -> tuple[int | None, int]:
    """(limit or None, used) of the process's control group, version 2."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        return (None if limit == "max" else int(limit)), used
    except (OSError, ValueError):
        return None, 0


def budget_bytes(budget: int | float | str, device: torch.device | str = "cpu") -> int:
    """Bytes that a budget allows on a device.

    Args:
        budget: whole bytes, text for `parse_bytes`, or a fraction (a float up to 1, or text such
            as "60%") of the memory that is free now.

    Raises:
        ConfigError: not positive, or more than the device has.
    """
    amount = parse_budget(budget) if isinstance(budget, str) else budget
    if isinstance(amount, float):
        if not 0 < amount <= 1:
            raise ConfigError(
                f"budget={budget!r} must be above 0 and at most 1 as a fraction of free memory; "
                "give whole bytes as an int or text such as '2GiB'"
            )
        return math.floor(amount * device_memory(device).free)
    if not is_integer(amount):
        raise ConfigError(f"budget={budget!r} must be bytes, a fraction, or text such as '2GiB'")
    if amount < 1:
        raise ConfigError(f"budget={budget!r} must be positive")
    num_bytes = amount
    if torch.device(device).type in ("cpu", "cuda"):
        total = device_memory(device).total
        if num_bytes > total:
            raise ConfigError(
                f"budget={budget!r} is {num_bytes} bytes, more than the {total} of {device}; give "
                "less, or a fraction such as 0.5 of what is free"
            )
    return num_bytes


def frames_within(num_bytes: int, frame_bytes: int, *, least: int = 1) -> int:
    """Frames that an arena of at most `num_bytes` bytes can give out, beside its sink.

    Raises:
        CacheFullError: fewer than `least`.
    """
    num_frames = num_bytes // frame_bytes - 1
    if num_frames < least:
        raise CacheFullError(
            f"{num_bytes} bytes hold {max(0, num_frames)} frames of {frame_bytes} bytes, and "
            f"{least} are needed; give at least {(least + 1) * frame_bytes} bytes"
        )
    return num_frames
