"""Replayed delta rules: the kernel against its reference, and that against the recurrence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs.state_format import StateFormat, StateSegment
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.states.gdn_replay import DeltaRing, gdn_replay_step
from cacheshrink_hybrid.kernels.states.pages import StatePages, StatePlace
from cacheshrink_hybrid.kernels.states.reference import read_states, write_states

from ...checks import assert_close
from ...pools import bytes_of_states

FRAME_BYTES = 512
B, M, P, WIDTH, L = 4, 2, 16, 16, 3
RANKS = {"groups": (16, 12)}
SEGMENTS = {
    "float32": (StateSegment(heads=(0, 1), rank=16, code="float32"),),
    "mixed": (
        StateSegment(heads=(1,), rank=16, code="float16"),
        StateSegment(heads=(0,), rank=12, code="int8"),
    ),
    # Ranks that differ between groups, whose inputs lie back to back.
    "groups": (
        StateSegment(heads=(0,), rank=16, code="float32"),
        StateSegment(heads=(1,), rank=12, code="int8"),
    ),
}


def _setup(
    name: str, dtype: torch.dtype, device: torch.device
) -> tuple[StatePages, DeltaRing, Tensor]:
    """States and rings in the same frames, one behind the other, of a poisoned arena."""
    pages = StatePages(
        arena=torch.empty(0, dtype=torch.uint8, device=device),
        frame_bytes=FRAME_BYTES,
        place=StatePlace.packed(FRAME_BYTES, first_byte=64),
        format=StateFormat(P, SEGMENTS[name]),
    )
    at = 64 + -(-pages.format.num_bytes // 16) * 16
    ranks = RANKS.get(name)
    groups = len(ranks) if ranks else 1
    channels = sum(ranks) if ranks else WIDTH
    places = []
    for size in (L * M * P * dtype.itemsize, L * channels * dtype.itemsize, 4 * L * M, 4 * L * M):
        places.append(StatePlace.packed(FRAME_BYTES, first_byte=at))
        at += -(-size // 16) * 16
    ring = DeltaRing(
        length=L,
        values=places[0],
        writes=places[1],
        decays=places[2],
        betas=places[3],
        groups=groups,
        ranks=ranks,
        dtype=dtype,
    )
    count = ring.num_frames(pages)
    arena = torch.full((2 * B * count * FRAME_BYTES,), 0xFF, dtype=torch.uint8, device=device)
    table = torch.randperm(2 * B * count, device=device).int()[: B * count].view(B, count)
    return replace(pages, arena=arena), ring, table


def _inputs(groups: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    key, query = torch.randn(2, B, groups, WIDTH, device=device) / 4
    value = torch.randn(B, M, P, device=device)
    return key, value, -torch.rand(B, M, device=device), torch.rand(B, M, device=device), query


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", torch.float32), ("mixed", torch.bfloat16), ("groups", torch.float16)],
)
def test_kernel_equals_reference(name: str, dtype: torch.dtype, device: torch.device) -> None:
    pages, ring, table = _setup(name, dtype, device)
    pages.arena.view(-1, FRAME_BYTES)[table.long()] = 0
    write_states(torch.randn(B, M, P, WIDTH, device=device), pages, table)
    table[2] = -1  # padding
    mine = replace(pages, arena=pages.arena.clone())
    tolerance = 2e-5 if name == "float32" else 1.7e-2
    for pending in ([0, 2, 0, 3], [1, 3, 0, 0]):
        counts = torch.tensor(pending, dtype=torch.int32, device=device)
        inputs = _inputs(ring.groups, device)
        due, got = (
            gdn_replay_step(
                *inputs, pages=own, ring=ring, table=table, num_pending=counts, backend=backend
            )
            for own, backend in ((pages, "torch"), (mine, "triton"))
        )
        assert due.isfinite().all()
        assert_close(got, due)
        left, right = read_states(mine, table), read_states(pages, table)
        size = right.abs().amax(dim=(2, 3), keepdim=True).clamp_min(1e-9)
        assert ((left - right).abs() / size).max() < tolerance
        others = ~bytes_of_states(pages, table)
        assert torch.equal(mine.arena[others], pages.arena[others])
        mine.arena.copy_(pages.arena)  # a number may round to either of two codes


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_replay_is_the_recurrence(backend: str, device: torch.device) -> None:
    pages, ring, table = _setup("float32", torch.float32, device)
    state = torch.randn(B, M, P, WIDTH, device=device)
    write_states(state, pages, table)
    for t in range(9 if backend == "torch" else 5):
        key, value, decay, beta, query = _inputs(ring.groups, device)
        pending = torch.full((B,), t % (L + 1), dtype=torch.int32, device=device)
        before = read_states(pages, table)
        y = gdn_replay_step(
            key, value, decay, beta, query, pages=pages, ring=ring, table=table,
            num_pending=pending, backend=backend,
        )  # fmt: skip
        keys, queries = (v.repeat_interleave(M // ring.groups, dim=1) for v in (key, query))
        state = state * torch.exp(decay)[..., None, None]
        held = torch.einsum("bmpn,bmn->bmp", state, keys)
        state = state + ((value - held) * beta[..., None])[..., None] * keys[:, :, None]
        due = torch.einsum("bmpn,bmn->bmp", state, queries)
        torch.testing.assert_close(y, due, rtol=1e-4, atol=1e-4)
        after = read_states(pages, table)
        if t % (L + 1) == L:
            torch.testing.assert_close(after, state, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(after, before)


def test_bad_arguments(device: torch.device) -> None:
    pages, ring, table = _setup("float32", torch.float32, device)
    inputs = _inputs(ring.groups, device)
    pending = torch.zeros(B, dtype=torch.int32, device=device)
    with pytest.raises(ConfigError, match=r"read_table has shape .*; due is"):
        short = table[:, : pages.num_frames].contiguous()
        gdn_replay_step(*inputs, pages=pages, ring=ring, table=short, num_pending=pending)
    with pytest.raises(ConfigError, match="log_decay has shape"):
        wrong = (*inputs[:2], inputs[2][:, :1], *inputs[3:])
        gdn_replay_step(*wrong, pages=pages, ring=ring, table=table, num_pending=pending)
