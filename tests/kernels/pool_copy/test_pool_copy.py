"""Frames are copied whole, pairs with -1 are left out, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.pool_copy import pool_copy


def _ids(device: torch.device, *frames: int) -> torch.Tensor:
    return torch.tensor(frames, dtype=torch.int32, device=device)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("frame_bytes", [48, 256, 40_000])
def test_within_an_arena(backend: str, frame_bytes: int, device: torch.device) -> None:
    arena = torch.randint(0, 256, (7 * frame_bytes + 5,), dtype=torch.uint8, device=device)
    before = arena[: 7 * frame_bytes].clone().view(7, -1)
    pool_copy(
        arena,
        arena,
        _ids(device, 3, -1, 6, 2),
        _ids(device, 1, 4, 5, -1),
        frame_bytes=frame_bytes,
        backend=backend,
    )
    after = arena[: 7 * frame_bytes].view(7, -1)
    assert torch.equal(after[[1, 5]], before[[3, 6]])
    assert torch.equal(after[[0, 2, 3, 4, 6]], before[[0, 2, 3, 4, 6]])


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_between_arenas(backend: str, device: torch.device) -> None:
    source = torch.randint(0, 256, (4 * 64,), dtype=torch.uint8, device=device)
    target = torch.zeros(2 * 64, dtype=torch.uint8, device=device)
    pool_copy(source, target, _ids(device, 3), _ids(device, 1), frame_bytes=64, backend=backend)
    assert torch.equal(target, torch.cat([torch.zeros_like(source[:64]), source[192:]]))


def test_bad_arguments(device: torch.device) -> None:
    arena = torch.zeros(256, dtype=torch.uint8, device=device)
    with pytest.raises(ConfigError, match="2 source frames for 1 target frames"):
        pool_copy(arena, arena, _ids(device, 0, 1), _ids(device, 2), frame_bytes=64)
    with pytest.raises(ConfigError, match="frame_bytes=40"):
        pool_copy(arena, arena, _ids(device, 0), _ids(device, 1), frame_bytes=40)
    with pytest.raises(ConfigError, match=r"target is torch\.float32"):
        pool_copy(arena, arena.float(), _ids(device, 0), _ids(device, 1), frame_bytes=64)
