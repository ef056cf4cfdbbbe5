"""`pool_copy` in plain torch."""

from __future__ import annotations

from torch import Tensor


def pool_copy_reference(
    source: Tensor, target: Tensor, source_frames: Tensor, target_frames: Tensor, frame_bytes: int
) -> None:
    """See `pool_copy`."""
    kept = (source_frames >= 0) & (target_frames >= 0)
    frames = source[: len(source) // frame_bytes * frame_bytes].view(-1, frame_bytes)
    copies = target[: len(target) // frame_bytes * frame_bytes].view(-1, frame_bytes)
    copies[target_frames[kept].long()] = frames[source_frames[kept].long()]
