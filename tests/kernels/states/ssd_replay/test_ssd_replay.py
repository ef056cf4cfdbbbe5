"""Replay: reading through the ring and flushing it give the recurrence; kernels their
references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs.state_format import StateFormat, StateSegment
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.states.pages import StatePages, StatePlace
from cacheshrink_hybrid.kernels.states.reference import read_states, write_states
from cacheshrink_hybrid.kernels.states.ssd_replay import (
    ReplayRing,
    ssd_replay_flush,
    ssd_replay_read,
)

from ...checks import assert_close

FRAME_BYTES = 512
B, M, G, P, L = 4, 4, 2, 16, 5
# Sequences that begin with inputs in their rings, all zero.
BEGUN = [1, 3]
RANKS = {"groups": (16, 12)}
SEGMENTS = {
    "float32": (StateSegment(heads=(0, 1, 2, 3), rank=16, code="float32"),),
    "mixed": (
        StateSegment(heads=(1, 2), rank=16, code="float16"),
        StateSegment(heads=(0, 3), rank=12, code="int8"),
    ),
    # Ranks that differ between groups, whose inputs lie back to back.
    "groups": (
        StateSegment(heads=(0, 1), rank=16, code="int8"),
        StateSegment(heads=(2, 3), rank=12, code="float16"),
    ),
}


def _setup(
    name: str, dtype: torch.dtype, device: torch.device, ranks: tuple[int, ...] | None = None
) -> tuple[StatePages, ReplayRing, Tensor]:
    """States and rings in the same frames, one behind the other, of a poisoned arena."""
    pages = StatePages(
        arena=torch.empty(0, dtype=torch.uint8, device=device),
        frame_bytes=FRAME_BYTES,
        place=StatePlace.packed(FRAME_BYTES, first_byte=64),
        format=StateFormat(P, SEGMENTS[name]),
    )
    at = 64 + -(-pages.format.num_bytes // 16) * 16
    places = []
    channels = sum(ranks or (pages.format.width,) * G)
    for size in (L * M * P * dtype.itemsize, L * channels * dtype.itemsize, L * M * 4):
        places.append(StatePlace.packed(FRAME_BYTES, first_byte=at))
        at += -(-size // 16) * 16
    ring = ReplayRing(
        length=L,
        values=places[0],
        writes=places[1],
        steps=places[2],
        groups=G,
        ranks=ranks,
        dtype=dtype,
    )
    count = ring.num_frames(pages)
    arena = torch.full((2 * B * count * FRAME_BYTES,), 0xFF, dtype=torch.uint8, device=device)
    table = torch.randperm(2 * B * count, device=device).int()[: B * count].view(B, count)
    return replace(pages, arena=arena), ring, table


def _inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(B, M, P, device=device)
    write, read = torch.randn(2, B, G, 16, device=device)
    return x, torch.rand(B, M, device=device), write, read


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("mixed", torch.float32),
        ("mixed", torch.bfloat16),
        ("groups", torch.float16),
    ],
)
def test_kernels_equal_references(name: str, dtype: torch.dtype, device: torch.device) -> None:
    pages, ring, table = _setup(name, dtype, device, RANKS.get(name))
    A = -torch.rand(M, device=device)
    pages.arena.view(-1, FRAME_BYTES)[table[BEGUN].long()] = 0
    write_states(torch.randn(B, M, P, pages.format.width, device=device), pages, table)
    table[2] = -1  # padding
    mine = replace(pages, arena=pages.arena.clone())
    pending = torch.tensor([0, 1, 0, 2], dtype=torch.int32, device=device)
    for _ in range(3):
        x, dt, write, read = _inputs(device)
        results = [
            ssd_replay_read(
                x, dt, A, write, read, pages=own, ring=ring, table=table, num_pending=pending,
                backend=backend,
            )
            for own, backend in ((pages, "torch"), (mine, "triton"))
        ]  # fmt: skip
        assert results[0].isfinite().all()
        assert_close(results[1], results[0])
        pending = pending + 1
    assert torch.equal(mine.arena, pages.arena)
    pending = torch.tensor([3, 4, 0, 5], dtype=torch.int32, device=device)
    target = table.clone()
    target[1] = -1  # not flushed
    for own, backend in ((pages, "torch"), (mine, "triton")):
        ssd_replay_flush(
            A, pages=own, ring=ring, read_table=table, write_table=target, num_pending=pending,
            backend=backend,
        )  # fmt: skip
    got, due = read_states(mine, table), read_states(pages, table)
    assert due.isfinite().all()
    tolerance = 2e-5 if name == "float32" else 1.7e-2
    size = due.abs().amax(dim=(2, 3), keepdim=True).clamp_min(1e-9)
    assert ((got - due).abs() / size).max() < tolerance


def test_ranks_change_nothing_but_where_inputs_lie(device: torch.device) -> None:
    """Inputs that lie back to back are read as those that are padded to one width."""
    found = []
    for ranks in (None, RANKS["groups"]):
        pages, ring, table = _setup("groups", torch.float32, device, ranks)
        torch.manual_seed(1)
        write_states(torch.randn(B, M, P, 16, device=device), pages, table)
        pending = torch.zeros(B, dtype=torch.int32, device=device)
        for _ in range(L):
            x, dt, write, read = _inputs(device)
            write[:, 1, 12:] = 0
            y = ssd_replay_read(
                x, dt, -torch.ones(M, device=device), write, read, pages=pages, ring=ring,
                table=table, num_pending=pending, backend="torch",
            )  # fmt: skip
            pending += 1
        found.append(y)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_replay_is_the_recurrence(backend: str, device: torch.device) -> None:
    pages, ring, table = _setup("float32", torch.float32, device)
    A = -torch.rand(M, device=device)
    state = torch.randn(B, M, P, 16, device=device)
    write_states(state, pages, table)
    pending = torch.zeros(B, dtype=torch.int32, device=device)
    for t in range(5):
        if t == 3:
            ssd_replay_flush(
                A, pages=pages, ring=ring, read_table=table, write_table=table,
                num_pending=pending, backend=backend,
            )  # fmt: skip
            torch.testing.assert_close(read_states(pages, table), state, rtol=1e-4, atol=1e-4)
            pending.zero_()
        x, dt, write, read = _inputs(device)
        y = ssd_replay_read(
            x, dt, A, write, read, pages=pages, ring=ring, table=table, num_pending=pending,
            backend=backend,
        )  # fmt: skip
        pending += 1
        writes, reads = (v.repeat_interleave(M // G, dim=1) for v in (write, read))
        state = state * torch.exp(dt * A)[..., None, None]
        state = state + (x * dt[..., None])[..., None] * writes[:, :, None]
        due = torch.einsum("bmpn,bmn->bmp", state, reads)
        torch.testing.assert_close(y, due, rtol=1e-4, atol=1e-4)


def test_bad_arguments(device: torch.device) -> None:
    pages, ring, table = _setup("float32", torch.float32, device)
    A = torch.zeros(M, device=device)
    pending = torch.zeros(B, dtype=torch.int32, device=device)
    with pytest.raises(ConfigError, match=r"read_table has shape .*; due is"):
        short = table[:, : pages.num_frames].contiguous()
        ssd_replay_flush(
            A, pages=pages, ring=ring, read_table=short, write_table=short, num_pending=pending
        )
    with pytest.raises(ConfigError, match=r"num_pending is torch\.int64"):
        ssd_replay_flush(
            A, pages=pages, ring=ring, read_table=table, write_table=table,
            num_pending=pending.long(),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="head 0 has rank 16, its group in the ring 12"):
        narrow = replace(ring, ranks=(12, 16))
        ssd_replay_flush(
            A, pages=pages, ring=narrow, read_table=table, write_table=table, num_pending=pending
        )
    with pytest.raises(ConfigError, match=r"ranks=\(16,\); due is at least 1 for each of 2"):
        replace(ring, ranks=(16,))
    with pytest.raises(ConfigError, match="length=65"):
        replace(ring, length=65)
