"""One step of each recurrence: outputs and stored states equal those of the references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs.state import StateCodec
from cacheshrink_hybrid.codecs.state_format import StateFormat, StateSegment
from cacheshrink_hybrid.errors import ConfigError, KernelUnavailableError
from cacheshrink_hybrid.kernels.states.gdn_step import gdn_step
from cacheshrink_hybrid.kernels.states.mamba1_step import mamba1_step
from cacheshrink_hybrid.kernels.states.pages import StatePages, StatePlace
from cacheshrink_hybrid.kernels.states.reference import read_states, within_rank, write_states
from cacheshrink_hybrid.kernels.states.ssd_step import ssd_step

from ..checks import assert_close
from ..pools import bytes_of_states

FRAME_BYTES = 512
B, M, G = 4, 6, 2


def _segments(*parts: tuple[tuple[int, ...], int, str]) -> tuple[StateSegment, ...]:
    return tuple(StateSegment(heads=h, rank=r, code=c) for h, r, c in parts)


ALL = tuple(range(M))
CASES: dict[str, tuple[int, tuple[StateSegment, ...], StatePlace]] = {
    "float32": (
        16,
        _segments((ALL, 16, "float32")),
        StatePlace.packed(FRAME_BYTES, first_byte=3 * FRAME_BYTES + 80),
    ),
    "bfloat16": (32, _segments((ALL, 24, "bfloat16")), StatePlace.packed(FRAME_BYTES)),
    "float16": (16, _segments((ALL, 32, "float16")), StatePlace.packed(FRAME_BYTES)),
    "int8": (48, _segments((ALL, 32, "int8")), StatePlace.packed(FRAME_BYTES)),
    "float8": (32, _segments((ALL, 16, "float8")), StatePlace.packed(FRAME_BYTES)),
    # Rows that do not fill their frames, heads apart, ranks and codes of their own.
    "mixed": (
        16,
        _segments(((1, 4), 32, "float32"), ((0, 5), 16, "float16"), ((2, 3), 32, "int8")),
        StatePlace(row_bytes=96, first_frame=1, first_offset=112, first_rows=3),
    ),
    # Ranks and values that fill no units of 16 bytes.
    "odd": (
        24,
        _segments(((0, 1, 2), 5, "float16"), ((3, 4, 5), 12, "int8")),
        StatePlace.packed(FRAME_BYTES),
    ),
}
STEP_OF_STORED = {
    "float32": 2e-5,
    "bfloat16": 1e-2,
    "float16": 2e-3,
    "int8": 1.7e-2,
    "float8": 0.13,
}
"""Largest difference of stored states, relative to the largest number of a head: one step of the
code, where a last bit before rounding decides."""

every_case = pytest.mark.parametrize("name", CASES)


def _pages(name: str, device: torch.device) -> tuple[StatePages, Tensor, Tensor]:
    """States in random frames of a poisoned arena, and read and write tables: a sequence that stays
    in place, one that moves, a new one, and padding."""
    head_dim, segments, place = CASES[name]
    pages = StatePages(
        arena=torch.empty(0, dtype=torch.uint8, device=device),
        frame_bytes=FRAME_BYTES,
        place=place,
        format=StateFormat(head_dim, segments),
    )
    count = pages.num_frames + 1
    arena = torch.full((6 * count * FRAME_BYTES,), 0xFF, dtype=torch.uint8, device=device)
    pages = replace(pages, arena=arena)
    frames = torch.randperm(6 * count - 1, device=device).int() + 1
    frames = frames[: 5 * count].view(5, count)
    none = torch.full_like(frames[0], -1)
    read = torch.stack([frames[0], frames[1], none, none])
    write = torch.stack([frames[0], frames[2], frames[3], none])
    state = torch.randn(B, M, head_dim, pages.format.width, device=device)
    state *= torch.logspace(-3, 3, M, device=device)[:, None, None]
    for segment in segments:
        state[:, list(segment.heads), :, segment.rank :] = 0
    write_states(state, pages, read)
    return pages, read, write


def _ssd(pages: StatePages, dtype: torch.dtype, device: torch.device) -> tuple:
    x = torch.randn(B, M, pages.format.head_dim, device=device).to(dtype)
    shared = torch.randn(2, B, G, pages.format.width, device=device).to(dtype)
    dt = torch.rand(B, M, device=device)
    A = -torch.logspace(-3, 0, M, device=device)
    return ssd_step, (x, dt, A, shared[0], shared[1])


def _gdn(pages: StatePages, dtype: torch.dtype, device: torch.device) -> tuple:
    key, query = torch.randn(2, B, G, pages.format.width, device=device)
    key = torch.nn.functional.normalize(key, dim=-1)
    value = torch.randn(B, M, pages.format.head_dim, device=device).to(dtype)
    beta = torch.rand(B, M, device=device)
    return gdn_step, (key.to(dtype), value, -torch.rand(B, M, device=device), beta, query)


def _mamba1(pages: StatePages, dtype: torch.dtype, device: torch.device) -> tuple:
    x, dt = torch.randn(2, B, M, pages.format.head_dim, device=device).to(dtype)
    A = -torch.rand(M, pages.format.head_dim, pages.format.width, device=device)
    write, read = torch.randn(2, B, M, pages.format.width, device=device).to(dtype)
    return mamba1_step, (x, dt.abs(), A, write, read)


STEPS: dict[str, Callable[..., Any]] = {"ssd": _ssd, "gdn": _gdn, "mamba1": _mamba1}


# Recurrences share what reads and writes codes, so one of them takes every case.
STEP_CASES = [
    (name, step)
    for step in STEPS
    for name in CASES
    if step == "ssd" or name in ("bfloat16", "float8", "mixed", "odd")
]


@pytest.mark.parametrize(("name", "step"), STEP_CASES)
def test_equals_reference(name: str, step: str, device: torch.device) -> None:
    pages, read, write = _pages(name, device)
    before = pages.arena.clone()
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    function, inputs = STEPS[step](pages, dtype, device)
    results, arenas, stored = {}, {}, {}
    for backend in ("torch", "triton"):
        mine = replace(pages, arena=before.clone())
        results[backend] = function(
            *inputs, pages=mine, read_table=read, write_table=write, backend=backend
        )
        arenas[backend] = mine.arena
        stored[backend] = read_states(mine, write)
    for head in range(M):  # heads differ in size by a million
        assert_close(results["triton"][:, head], results["torch"][:, head])
    for segment in pages.format.segments:
        for head in segment.heads:
            got, due = (stored[backend][:, head] for backend in ("triton", "torch"))
            assert due[2].abs().max() > 0
            size = due.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-9)
            assert ((got - due).abs() / size).max() < STEP_OF_STORED[segment.code]
            # A step of a code here and there, not a loss everywhere.
            assert ((got - due).abs() / size > 3e-5).float().mean() < 0.02
    # What is not of these states stays as it was, byte for byte.
    touched = bytes_of_states(pages, write)
    assert torch.equal(arenas["triton"][~touched], before[~touched])
    assert not torch.equal(arenas["triton"][touched], before[touched])


@every_case
def test_states_are_those_of_the_codec(name: str) -> None:
    """The bytes that steps read and write are those of `codecs.state`."""
    pages, read, _ = _pages(name, torch.device("cpu"))
    codec = StateCodec(pages.format.head_dim, pages.format.segments)
    state = within_rank(torch.randn(2, M, codec.head_dim, codec.width), codec)
    write_states(state, pages, read[:2])
    byte = torch.arange(pages.format.num_bytes)
    frame, offset = pages.place.locate(byte, pages.frame_bytes)
    stored = pages.arena[read[:2].long()[:, frame] * pages.frame_bytes + offset]
    assert torch.equal(stored, codec.encode(state)[:, : pages.format.num_bytes])
    padded = torch.nn.functional.pad(stored, (0, codec.row_bytes - pages.format.num_bytes))
    assert torch.equal(read_states(pages, read[:2]), codec.decode(padded))


@pytest.mark.parametrize("code", ["float32", "float16", "int8"])
def test_many_steps_stay_close(code: str, device: torch.device) -> None:
    """The kernel's own states, step after step, against the exact recurrence."""
    segments = _segments((ALL, 16, code))
    pages = StatePages(
        arena=torch.zeros(64 * FRAME_BYTES, dtype=torch.uint8, device=device),
        frame_bytes=FRAME_BYTES,
        place=StatePlace.packed(FRAME_BYTES),
        format=StateFormat(16, segments),
    )
    table = torch.arange(1, 1 + pages.num_frames, dtype=torch.int32, device=device)[None]
    state = torch.zeros(M, 16, 16, device=device)
    A = -torch.logspace(-2, 0, M, device=device)
    for _ in range(5):
        x = torch.randn(1, M, 16, device=device)
        write, read = torch.randn(2, 1, G, 16, device=device)
        dt = torch.rand(1, M, device=device)
        y = ssd_step(
            x,
            dt,
            A,
            write,
            read,
            pages=pages,
            read_table=table,
            write_table=table,
            backend="triton",
        )
        by_head = write[0].repeat_interleave(M // G, 0), read[0].repeat_interleave(M // G, 0)
        state = state * torch.exp(dt[0] * A)[:, None, None]
        state = state + (dt[0, :, None] * x[0])[..., None] * by_head[0][:, None]
        due = torch.einsum("mpn,mn->mp", state, by_head[1])
    error = (y[0] - due).norm() / due.norm()
    assert error < {"float32": 1e-5, "float16": 1e-3, "int8": 3e-2}[code]


def test_bad_arguments(device: torch.device) -> None:
    pages, read, write = _pages("float32", device)
    before = pages.arena.clone()
    function, inputs = _ssd(pages, torch.float32, device)
    tables = {"read_table": read, "write_table": write}
    with pytest.raises(ConfigError, match=r"A has shape \(5,\); due is \(6,\)"):
        function(inputs[0], inputs[1], inputs[2][:5], *inputs[3:], pages=pages, **tables)
    with pytest.raises(ConfigError, match=r"read_table is torch\.int64"):
        function(*inputs, pages=pages, read_table=read.long(), write_table=write)
    with pytest.raises(ConfigError, match=r"write_table has shape \(4, 1\)"):
        function(*inputs, pages=pages, read_table=read, write_table=write[:, :1].contiguous())
    with pytest.raises(ConfigError, match="due is every head once"):
        replace(pages, format=StateFormat(16, _segments(((0, 2), 16, "float32"))))
    with pytest.raises(ConfigError, match="ranks must be at least 1"):
        replace(pages, format=StateFormat(16, _segments((ALL, 0, "float32"))))
    assert torch.equal(pages.arena, before)


def test_heads_too_large_for_one_scale() -> None:
    pages = StatePages(
        arena=torch.zeros(2**22, dtype=torch.uint8),
        frame_bytes=2**20,
        place=StatePlace.packed(2**20),
        format=StateFormat(8192, _segments(((0,), 16, "float16"))),
    )
    table = torch.ones(1, pages.num_frames, dtype=torch.int32)
    x = torch.zeros(1, 1, 8192)
    vector = torch.zeros(1, 1, 16)
    A = torch.zeros(1, 8192, 16)
    with pytest.raises(KernelUnavailableError, match="code them as int8"):
        mamba1_step(
            x, x, A, vector, vector, pages=pages, read_table=table, write_table=table,
            backend="triton",
        )  # fmt: skip
