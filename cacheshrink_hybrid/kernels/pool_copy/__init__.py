"""Copying whole frames, for forks and spills."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError
from ..backend import Backend, uses_triton
from ..checks import arena_faults

__all__ = ["pool_copy"]


def pool_copy(
    source: Tensor,
    target: Tensor,
    source_frames: Tensor,
    target_frames: Tensor,
    *,
    frame_bytes: int,
    backend: Backend = "auto",
) -> None:
    """Copy frames of one arena to frames of another, or of the same one; `target` is changed.

    Args:
        source, target: arenas, 1-d uint8. They may be the same tensor.
        source_frames, target_frames: frame ids, (n,), int32; a pair with a -1 is left out. No
            target frame may occur twice, or be a source frame of the same arena.
        frame_bytes: size of a frame in both, a multiple of 16.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.
    """
    faults = arena_faults(source, "source") + arena_faults(target, "target")
    for name, frames in (("source_frames", source_frames), ("target_frames", target_frames)):
        if frames.dtype != torch.int32 or frames.ndim != 1:
            faults.append(f"{name} is {frames.dtype}, {frames.ndim}-d; due is 1-d int32")
    if source_frames.shape != target_frames.shape:
        faults.append(f"{len(source_frames)} source frames for {len(target_frames)} target frames")
    if frame_bytes < 16 or frame_bytes % 16:
        faults.append(f"frame_bytes={frame_bytes} must be a multiple of 16")
    if faults:
        raise ConfigError("; ".join(faults))
    if uses_triton(backend, source, target, source_frames, target_frames):
        from .kernel import pool_copy_triton

        pool_copy_triton(source, target, source_frames, target_frames, frame_bytes)
    else:
        from .reference import pool_copy_reference

        pool_copy_reference(source, target, source_frames, target_frames, frame_bytes)
