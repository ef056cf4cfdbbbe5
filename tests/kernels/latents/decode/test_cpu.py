"""Decoding by functions compiled for the CPU equals its reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.kernels.latents.decode import KeyUp, LatentRead, latent_decode
from cacheshrink_hybrid.kernels.latents.prefill import latent_prefill

from ...cases import LAYOUTS
from ...checks import assert_close
from ...pools import filled_rows, row_addresses

pytest.importorskip("numba")
HOST = torch.device("cpu")
T = 8
RAGGED = [2 * T + 5, 0, 1, T - 1, T, T + 1, 9 * T + 3]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 5.0},
    "window": {"window": 11},
    "everything": {"window": 20, "softcap": 8.0},
}


def _ranks(name: str) -> tuple[int, int]:
    """Key and value ranks that overlap, cut runs, and leave channels out on both sides."""
    channels = LAYOUTS[name].num_channels
    return (channels // 2 + 4) // 8 * 8, channels * 3 // 4 // 8 * 8


def _agree(query: Tensor, *where: Any, **options: Any) -> None:
    due = latent_decode(query, *where, backend="torch", **options)
    for num_splits in (1, 3):
        got = latent_decode(query, *where, backend="cpu", num_splits=num_splits, **options)
        assert_close(got[0], due[0])
        assert_close(got[1], due[1])


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("poison", [0xFF, 0x3C])
def test_absorbed(name: str, poison: int) -> None:
    """Of every kind of number; of unequal lengths, wherever frames lie and whatever lies beside."""
    rows, table, lens = filled_rows(LAYOUTS[name], RAGGED, device=HOST, seed=poison, poison=poison)
    key_rank, value_rank = _ranks(name)
    read = LatentRead(key_rank=key_rank, value_rank=value_rank, scale=0.3)
    for tokens, heads in ((1, 5), (3, 4)):
        query = torch.randn(len(RAGGED), tokens, heads, key_rank)
        _agree(query, rows, table, lens, read=read, offset=torch.randn(query.shape[:3]))


@pytest.mark.parametrize(("option", "tokens"), product(OPTIONS, [1, 3]))
def test_options(option: str, tokens: int) -> None:
    lens = [130, 3, 0, 33]
    rows, table, context = filled_rows(LAYOUTS["mixed"], lens, device=HOST)
    read = LatentRead(key_rank=64, value_rank=64, scale=0.1, **OPTIONS[option])
    if read.window is not None:  # frames that nobody sees any more are given back
        table[0, 1:4] = -1
    _agree(torch.randn(len(lens), tokens, 7, 64), rows, table, context, read=read)


@pytest.mark.parametrize("window", [None, 12])
def test_first_slots(window: int | None) -> None:
    """Padding on the left is not seen: less than a tile, some tiles, all."""
    rows, table, context = filled_rows(LAYOUTS["8"], [150, 150, 150], device=HOST)
    first = torch.tensor([0, 113, 149], dtype=torch.int32)
    read = LatentRead(key_rank=48, value_rank=48, scale=0.1, window=window)
    _agree(torch.randn(3, 2, 3, 48), rows, table, context, read=read, first_slots=first)


@pytest.mark.parametrize("name", ["mixed", "floats", "narrow", "plain"])
@pytest.mark.parametrize("per_head", [False, True], ids=["joint", "per head"])
@pytest.mark.parametrize("finish", ["bias", "rotated", "all"])
def test_rebuilt_keys(name: str, per_head: bool, finish: str) -> None:
    """Of a width that is no multiple of a vector; a part of their channels is rotated."""
    layout, J, D = LAYOUTS[name], 2, 12
    # Keys are whole runs of which each head has as many channels.
    key_rank = layout.runs[0].channels
    rank = key_rank // J if per_head else key_rank
    angles = torch.arange(128)[:, None] * 0.7 ** torch.arange(4)
    turned = {"cos": angles.cos(), "sin": angles.sin()} if finish != "bias" else {}
    norm = {"norm_weight": torch.rand(D), "norm_epsilon": 1e-5} if finish == "all" else {}
    key_up = KeyUp(
        weight=torch.randn(J, D, rank) / rank**0.5,
        bias=torch.randn(J, D),
        per_head=per_head,
        **turned,
        **norm,
    )
    read = LatentRead(
        key_rank=key_rank,
        value_rank=layout.num_channels - key_rank,
        scale=D**-0.5,
        key_up=key_up,
    )
    rows, table, lens = filled_rows(layout, RAGGED, device=HOST, outliers=False)
    _agree(torch.randn(len(RAGGED), 2, 3 * J, D), rows, table, lens, read=read)


def test_chunks() -> None:
    """Sequences that bring different numbers of queries."""
    rows, table, lens = filled_rows(LAYOUTS["mixed"], RAGGED, device=HOST)
    new = torch.tensor([T + 1, 0, 1, 3, T, T, 5], dtype=torch.int32)
    query = torch.randn(len(RAGGED), T + 1, 5, 64)
    read = LatentRead(key_rank=64, value_rank=64, scale=0.1)
    got, due = (
        latent_prefill(query, rows, table, lens, new, read=read, backend=backend)
        for backend in ("cpu", "torch")
    )
    valid = torch.arange(T + 1) < new[:, None]
    for mine, theirs in zip(got, due, strict=True):
        assert_close(mine[valid], theirs[valid])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_queries(dtype: torch.dtype) -> None:
    rows, table, lens = filled_rows(LAYOUTS["mixed"], [45, 20], device=HOST)
    query = torch.randn(2, 1, 20, 64).to(dtype)
    read = LatentRead(key_rank=64, value_rank=64, scale=0.3)
    due = latent_decode(query.float(), rows, table, lens, read=read, backend="torch")
    got = latent_decode(query, rows, table, lens, read=read, backend="cpu")
    assert_close(got[0], due[0].to(dtype))


def test_lost_tokens_spoil_those_who_see_them() -> None:
    rows, table, context = filled_rows(LAYOUTS["8"], [20, 20], device=HOST)
    slot = table[1, 1:2] * rows.frame_tokens + 3
    rows.arena[row_addresses(rows, slot)[0, rows.layout.gain_byte]] = 255
    query = torch.randn(2, 10, 2, 48)  # queries at slots 10 to 19; slot 11 is lost
    read = LatentRead(key_rank=48, value_rank=48, scale=0.1)
    output, lse = latent_decode(query, rows, table, context, read=read, backend="cpu")
    assert output[0].isfinite().all() and lse[0].isfinite().all()
    assert output[1, 0].isfinite().all()
    assert output[1, 1:].isnan().all() and lse[1, 1:].isnan().all()


def test_queries_that_are_not_finite_give_nan() -> None:
    rows, table, context = filled_rows(LAYOUTS["8"], [20], device=HOST)
    query = torch.randn(1, 1, 2, 48)
    query[0, 0, 1, 5] = torch.nan
    read = LatentRead(key_rank=48, value_rank=48, scale=0.1)
    output, _ = latent_decode(query, rows, table, context, read=read, backend="cpu")
    assert output[0, 0, 0].isfinite().all() and output[0, 0, 1].isnan().all()


def test_threads() -> None:
    """Of one call, as many as torch uses; and calls of several threads at the same time."""
    rows, table, context = filled_rows(LAYOUTS["mixed"], [700, 0, 90], device=HOST)
    read = LatentRead(key_rank=64, value_rank=64, scale=0.1)
    queries = torch.randn(6, 3, 1, 4, 64)
    due = [
        latent_decode(query, rows, table, context, read=read, backend="torch") for query in queries
    ]
    torch.set_num_threads(2)

    def decode(query: Tensor) -> tuple[Tensor, Tensor]:
        return latent_decode(query, rows, table, context, read=read, backend="cpu")

    with ThreadPoolExecutor(3) as callers:
        for got, wanted in zip(callers.map(decode, queries), due, strict=True):
            assert_close(got[0], wanted[0])
            assert_close(got[1], wanted[1])
