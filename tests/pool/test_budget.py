"""Budgets are read, checked, and kept to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacheshrink_hybrid.byte_counts import parse_bytes
from cacheshrink_hybrid.errors import CacheFullError, ConfigError, NotSupportedError
from cacheshrink_hybrid.pool import budget as module
from cacheshrink_hybrid.pool.budget import DeviceMemory, budget_bytes, device_memory, frames_within
from cacheshrink_hybrid.pool.frame_pool import FramePool


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("2GiB", 2 * 1024**3),
        ("1.5 gib", 3 * 1024**3 // 2),
        ("500MB", 500_000_000),
        (" 3 KiB ", 3072),
        ("0.5TiB", 1024**4 // 2),
    ],
)
def test_amounts(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "2 gigs", "-1GB", "1,5GB", "nan", "1e9"])
def test_no_amounts(text: str) -> None:
    with pytest.raises(ConfigError, match="no amount of memory"):
        parse_bytes(text)


def test_the_host_tells_its_memory() -> None:
    memory = device_memory("cpu")
    assert 0 < memory.free <= memory.total


def test_other_devices_do_not() -> None:
    with pytest.raises(NotSupportedError, match="free memory of device meta"):
        device_memory("meta")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", DeviceMemory(free=4096 * 1024, total=8192 * 1024)),
     ("1000000", DeviceMemory(free=400_000, total=1_000_000)),
     ("500000", DeviceMemory(free=0, total=500_000))],
)  # fmt: skip
def test_a_control_group_limits(monkeypatch, tmp_path: Path, limit: str, expected) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "meminfo").write_text("MemTotal: 8192 kB\nMemAvailable: 4096 kB\n")
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    monkeypatch.setattr(module, "MEMINFO", tmp_path / "meminfo")
    assert device_memory("cpu") == expected


def test_budgets(monkeypatch) -> None:
    memory = DeviceMemory(free=1000, total=5000)
    monkeypatch.setattr(module, "device_memory", lambda device: memory)
    assert budget_bytes(4000) == 4000
    assert budget_bytes("2KiB") == 2048
    assert budget_bytes(0.5) == 500
    assert budget_bytes("25%") == 250
    for bad in (0, -1, 5001, "6KB", 0.0, 1.5, float("nan"), "x%", "120%", True, None):
        with pytest.raises(ConfigError):
            budget_bytes(bad)


def test_the_arena_keeps_to_the_budget() -> None:
    for num_bytes in (512, 1000, 65536, 70000):
        num_frames = frames_within(num_bytes, 256)
        assert FramePool(num_frames, 256).nbytes <= num_bytes
        assert (num_frames + 2) * 256 > num_bytes


def test_too_small_a_budget_says_what_is_needed() -> None:
    with pytest.raises(CacheFullError, match="give at least 1536 bytes"):
        frames_within(1000, 256, least=5)
