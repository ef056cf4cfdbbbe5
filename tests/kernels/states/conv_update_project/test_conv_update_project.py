"""One convolution step: outputs and windows equal the reference's, and that the mixers' formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.states.conv_update_project import ConvPages, conv_update_project
from cacheshrink_hybrid.kernels.states.pages import StatePlace

from ...checks import assert_close

FRAME_BYTES = 256
B, G, N, W = 3, 2, 20, 4
VALUES = 300
PARTS = ("values", "write", "read")
C = VALUES + 2 * G * N

CASES = {
    "mamba2-projected": (("values", "write", "read"), (16, 7), False, torch.bfloat16),
    "mamba2": (("values", "write", "read"), (None, None), False, torch.float16),
    "mamba2-read": (("values", "read"), (None, 9), False, torch.float32),
    "mamba1": (("values",), (None, None), False, torch.float16),
    "delta-rule": (("read", "write", "values"), (8, 8), True, torch.float32),
}


def _pages(dtype: torch.dtype, device: torch.device) -> tuple[ConvPages, Tensor, Tensor]:
    pages = ConvPages(
        arena=torch.zeros(FRAME_BYTES, dtype=torch.uint8, device=device),
        frame_bytes=FRAME_BYTES,
        place=StatePlace(row_bytes=48, first_frame=1, first_offset=96, first_rows=2),
        channels=C,
        columns=W - 1,
        dtype=dtype,
    )
    count = pages.num_frames
    arena = torch.randn(4 * count * FRAME_BYTES // 4, device=device).to(torch.float16)
    arena = torch.cat([arena, arena]).view(torch.uint8)
    if dtype == torch.float32:
        arena = torch.randn(len(arena) // 4, device=device).view(torch.uint8)
    if dtype == torch.bfloat16:
        arena = torch.randn(len(arena) // 2, device=device).bfloat16().view(torch.uint8)
    frames = torch.randperm(4 * count, device=device).int().view(4, count)
    none = torch.full_like(frames[0], -1)
    read = torch.stack([frames[0], frames[1], none])
    write = torch.stack([frames[0], frames[2], frames[3]])
    return replace(pages, arena=arena), read, write


@pytest.mark.parametrize("name", CASES)
def test_equals_reference(name: str, device: torch.device) -> None:
    order, ranks, normalize, dtype = CASES[name]
    pages, read, write = _pages(dtype, device)
    before = pages.arena.clone()
    column = torch.randn(B, C, device=device)
    weight = torch.randn(C, W, device=device)
    bias = torch.randn(C, device=device) if ranks[0] else None
    shared = {"groups": G, "group_size": N, "normalize": normalize} if len(order) > 1 else {}
    bases = [None if r is None else torch.randn(G, N, r, device=device) for r in ranks]
    got, arenas = {}, {}
    for backend in ("torch", "triton"):
        mine = replace(pages, arena=before.clone())
        got[backend] = conv_update_project(
            column,
            weight,
            bias,
            pages=mine,
            read_table=read,
            write_table=write,
            order=order,
            write_basis=bases[0],
            read_basis=bases[1],
            backend=backend,
            **shared,
        )
        arenas[backend] = mine.arena
    for part, mine, due in zip(PARTS, got["triton"], got["torch"], strict=True):
        assert (part in order) == (mine is not None) == (due is not None)
        if mine is not None:
            assert_close(mine, due)
            assert part == "values" or mine.dtype == torch.float32
    assert torch.equal(arenas["triton"], arenas["torch"])
    assert not torch.equal(arenas["torch"], before)


def test_reference_is_the_convolution() -> None:
    device = torch.device("cpu")
    pages, _, write = _pages(torch.float32, device)
    columns = torch.randn(B, C, 6)
    weight, bias = torch.randn(C, W), torch.randn(C)
    none = torch.full_like(write, -1)
    for t in range(6):
        values, for_write, for_read = conv_update_project(
            columns[:, :, t],
            weight,
            bias,
            pages=pages,
            read_table=none if t == 0 else write,
            write_table=write,
            order=("values", "write", "read"),
            groups=G,
            group_size=N,
        )
    due = torch.nn.functional.conv1d(columns, weight[:, None], bias, padding=W - 1, groups=C)
    due = torch.nn.functional.silu(due[..., 5])
    got = torch.cat([values, for_write.flatten(1), for_read.flatten(1)], dim=1)
    torch.testing.assert_close(got, due, rtol=1e-5, atol=1e-5)


def test_bad_arguments(device: torch.device) -> None:
    pages, read, write = _pages(torch.float32, device)
    arguments = {
        "pages": pages,
        "read_table": read,
        "write_table": write,
        "order": ("values", "write", "read"),
        "groups": G,
        "group_size": N,
    }
    column, weight = torch.randn(B, C, device=device), torch.randn(C, W, device=device)
    with pytest.raises(ConfigError, match="order="):
        conv_update_project(
            column, weight, None, **{**arguments, "order": ("write", "values", "read")}
        )
    with pytest.raises(ConfigError, match=r"weight has shape \(380, 3\)"):
        conv_update_project(column, weight[:, 1:], None, **arguments)
    with pytest.raises(ConfigError, match="leave no values"):
        conv_update_project(column, weight, None, **{**arguments, "group_size": 100})
    with pytest.raises(ConfigError, match="due is at least 1 of 1"):
        conv_update_project(column, weight, None, **{**arguments, "groups": 0})
    with pytest.raises(ConfigError, match=r"concern write and read, which order=\('values',\)"):
        conv_update_project(column, weight, None, **{**arguments, "order": ("values",)})
    with pytest.raises(ConfigError, match="write_basis is given, but order"):
        basis = torch.zeros(G, N, 4, device=device)
        conv_update_project(
            column, weight, None, write_basis=basis, **{**arguments, "order": ("values", "read")}
        )
    with pytest.raises(ConfigError, match="read_basis has shape"):
        basis = torch.zeros(G, N + 1, 4, device=device)
        conv_update_project(column, weight, None, read_basis=basis, **arguments)
