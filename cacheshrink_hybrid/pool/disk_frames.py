"""Frames in a file: an arena on a disk, of which memory has what is free for it."""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import FrameError
from .frame_ledger import FRAME_MASK, FrameLedger, Handles
from .frame_pool import SINK_FRAMES, FramePool


class DamagedFramesError(FrameError):
    """Frames that are read otherwise than they were written."""


class DiskFrames(FramePool):
    """Equal frames of a file, each with a checksum, which `read` looks at.

    Args:
        path: of the file, made if it is not there, and longer if it is too short.
        num_frames, frame_bytes: see `FramePool`.

    Attributes:
        sums: CRC-32 of every frame that was written, (1 + num_frames,) uint32.

    Raises:
        OSError: the file cannot be written, or the disk has no room for it.
    """

    def __init__(self, path: Path, num_frames: int, frame_bytes: int) -> None:
        FrameLedger.__init__(self, num_frames)
        self.frame_bytes, self.poison = frame_bytes, False
        size = (num_frames + SINK_FRAMES) * frame_bytes
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            # Now, since a mapped page that finds no room later ends the process.
            os.posix_fallocate(file.fileno(), 0, size)
            self._map = mmap.mmap(file.fileno(), size)
        self.arena = torch.frombuffer(self._map, dtype=torch.uint8)
        self.sums = np.zeros(num_frames + 1, dtype=np.uint32)

    def read(self, handles: Handles) -> Tensor:
        """The bytes of frames, (k, frame_bytes), copied.

        Raises:
            DamagedFramesError: they are not what was written.
        """
        content = super().read(handles)
        wrong = [
            frame
            for frame, row in zip((handles & FRAME_MASK).tolist(), content.numpy(), strict=True)
            if zlib.crc32(row.data) != self.sums[frame]
        ]
        if wrong:
            raise DamagedFramesError(f"frames {wrong[:8]} hold other bytes than were written there")
        return content

    def write(self, handles: Handles, content: Tensor) -> None:
        super().write(handles, content)
        rows = content.cpu().contiguous().numpy()
        for frame, row in zip((handles & FRAME_MASK).tolist(), rows, strict=True):
            self.sums[frame] = zlib.crc32(row.data)

    def fetch_ahead(self, handles: Handles) -> None:
        """Let the operating system begin to read frames that will be asked for."""
        for frame in (handles & FRAME_MASK).tolist():
            start = frame * self.frame_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, self.frame_bytes)

    def flush(self) -> None:
        """Write to the disk what is not there yet."""
        self._map.flush()
