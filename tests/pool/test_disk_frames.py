"""Frames in a file have the bytes that were written, or say that they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cacheshrink_hybrid.errors import FrameError
from cacheshrink_hybrid.pool.disk_frames import DamagedFramesError, DiskFrames


def content(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 512), dtype=torch.uint8)


def test_frames_are_in_the_file(tmp_path: Path) -> None:
    pool = DiskFrames(tmp_path / "frames", 20, 512)
    first, second = pool.allocate(3), pool.allocate(2)
    data = content(3)
    pool.write(first, data)
    pool.write(second, content(2))
    pool.release(second)
    assert torch.equal(pool.read(first), data)
    pool.fetch_ahead(first)
    pool.flush()
    whole = (tmp_path / "frames").read_bytes()
    assert len(whole) == 21 * 512
    assert whole[512 : 4 * 512] == data.numpy().tobytes()
    again = DiskFrames(tmp_path / "frames", 20, 512)
    again.sums[:] = pool.sums
    assert torch.equal(again.read(again.claim(np.array([2]), "kv")), data[1:2])
    with pytest.raises(FrameError, match=r"frames \[2\] are not all free"):
        again.claim(np.array([2]), "kv")
    again.check_integrity()


def test_damage_is_noticed(tmp_path: Path) -> None:
    pool = DiskFrames(tmp_path / "frames", 20, 512)
    held = pool.allocate(3)
    pool.write(held, content(3))
    pool.frames[2, 77] ^= 1
    with pytest.raises(DamagedFramesError, match=r"frames \[2\] hold other bytes"):
        pool.read(held)
    assert len(pool.read(held[:1])) == 1


def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        DiskFrames(tmp_path / "none" / "frames", 20, 512)
