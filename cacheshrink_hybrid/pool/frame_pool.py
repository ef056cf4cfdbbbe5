"""The arena: one byte buffer cut into equal frames, with the ledger of who holds them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import FrameError
from ..lasting import lasting_tensors
from .frame_ledger import FRAME_MASK, FrameLedger, Handles

POISON = 0xFF
SINK_FRAMES = 1


class FramePool(FrameLedger):
    """Equal frames of one `torch.uint8` arena, frame f from byte f * frame_bytes on.

    Args:
        num_frames: frames that can be given out; the arena has one more, frame 0, the sink.
        frame_bytes: bytes per frame.
        device: where the arena lies.
        poison: fill frames with 0xFF while they are free, and let `check_integrity` look for
            writes to them. For tests.
    """

    def __init__(
        self,
        num_frames: int,
        frame_bytes: int,
        *,
        device: torch.device | str = "cpu",
        poison: bool = False,
    ) -> None:
        super().__init__(num_frames)
        if frame_bytes < 1:
            raise FrameError(f"frame_bytes={frame_bytes} must be at least 1")
        self.frame_bytes = frame_bytes
        self.poison = poison
        self.arena = _new_arena(num_frames, frame_bytes, torch.device(device))
        if poison:
            self.arena.fill_(POISON)

    @property
    def device(self) -> torch.device:
        return self.arena.device

    @property
    def nbytes(self) -> int:
        """Bytes of the arena, sink included."""
        return self.arena.numel()

    @property
    def table_nbytes(self) -> int:
        """Bytes of book-keeping, which lies in host memory."""
        arrays = (self._free, self._handles, self._references, self._kind, self._mark, self._iota)
        return sum(array.nbytes for array in arrays)

    @property
    def frames(self) -> Tensor:
        """The arena by frame, (1 + num_frames, frame_bytes)."""
        return self.arena.view(-1, self.frame_bytes)

    def release(self, handles: Handles) -> Handles:
        freed = super().release(handles)
        if self.poison and len(freed):
            self.frames[self.index(freed)] = POISON
        return freed

    def zero(self, handles: Handles) -> None:
        """Fill frames with zeros."""
        if len(handles):
            self.frames[self.index(handles)] = 0

    def copy(self, sources: Handles, targets: Handles) -> None:
        """Copy the bytes of whole frames, all at once."""
        if len(sources):
            self.frames[self.index(targets)] = self.frames[self.index(sources)]

    def read(self, handles: Handles) -> Tensor:
        """The bytes of frames, (k, frame_bytes), copied."""
        return self.frames[self.index(handles)]

    def write(self, handles: Handles, content: Tensor) -> None:
        """Fill frames with bytes (k, frame_bytes) from any device."""
        if len(handles):
            self.frames[self.index(handles)] = content.to(self.device)

    def fetch_ahead(self, handles: Handles) -> None:
        """These frames will be read soon. Frames in memory need nothing."""

    def index(self, handles: Handles) -> Tensor:
        """Frame numbers as an index on the arena's device, (k,) int64."""
        return torch.from_numpy(np.bitwise_and(handles, FRAME_MASK)).to(self.device)

    def grow(self, num_frames: int) -> None:
        """Move to a larger arena; tensors that looked into the old one no longer do."""
        super().grow(num_frames)
        old = self.arena
        self.arena = _new_arena(num_frames, self.frame_bytes, old.device)
        self.arena[: old.numel()] = old
        if self.poison:
            self.arena[old.numel() :] = POISON

    def check_integrity(self) -> None:
        """Also that nobody wrote to a free frame, in poison mode."""
        super().check_integrity()
        if self.poison:
            free = torch.from_numpy(self._free[: self.num_free]).to(self.device)
            touched = (self.frames[free] != POISON).any(dim=1)
            if touched.any():
                raise FrameError(f"free frames {free[touched][:8].tolist()} were written to")


def _new_arena(num_frames: int, frame_bytes: int, device: torch.device) -> Tensor:
    num_bytes = (num_frames + SINK_FRAMES) * frame_bytes
    with lasting_tensors():
        arena = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    arena[:frame_bytes] = 0
    return arena
