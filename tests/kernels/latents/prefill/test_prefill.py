"""Prefill over paged history: ragged chunks, more rows than a program takes, windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs.row_layout import RowLayout
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.latents.decode import KeyUp, LatentRead
from cacheshrink_hybrid.kernels.latents.prefill import latent_prefill

from ...cases import LAYOUTS
from ...checks import assert_close
from ...pools import filled_rows

LENS = [60, 33, 5, 0, 40]
NEW = [23, 33, 1, 0, 9]
T = max(NEW)


def _valid(result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the tokens that are no padding."""
    new = torch.tensor(NEW, device=result[0].device)
    valid = torch.arange(T, device=new.device) < new[:, None]
    return result[0][valid], result[1][valid]


def _check(layout: RowLayout, read: LatentRead, width: int, device: torch.device) -> None:
    rows, table, context = filled_rows(layout, LENS, device=device, outliers=False)
    new = torch.tensor(NEW, dtype=torch.int32, device=device)
    query = torch.randn(len(LENS), T, 6, width, device=device)
    results = [
        _valid(latent_prefill(query, rows, table, context, new, read=read, backend=backend))
        for backend in ("triton", "torch")
    ]
    assert_close(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1])


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 12])
def test_absorbed(window: int | None, device: torch.device) -> None:
    read = LatentRead(key_rank=64, value_rank=80, scale=0.2, window=window)
    _check(LAYOUTS["mixed"], read, 64, device)


@pytest.mark.slow
def test_rebuilt(device: torch.device) -> None:
    angles = torch.arange(64, device=device)[:, None] * 0.5 ** torch.arange(8, device=device)
    key_up = KeyUp(
        weight=torch.randn(3, 16, 48, device=device) / 7,
        bias=torch.randn(3, 16, device=device),
        cos=angles.cos(),
        sin=angles.sin(),
    )
    read = LatentRead(key_rank=48, value_rank=48, scale=0.25, key_up=key_up)
    _check(LAYOUTS["8"], read, 16, device)


def test_chunks_make_no_difference(device: torch.device) -> None:
    rows, table, _ = filled_rows(LAYOUTS["4"], [30], device=device)
    read = LatentRead(key_rank=48, value_rank=48, scale=0.1)
    query = torch.randn(1, 30, 2, 48, device=device)

    def part(first: int, last: int) -> Tensor:
        context = torch.tensor([last], dtype=torch.int32, device=device)
        return latent_prefill(
            query[:, first:last], rows, table, context, context - first, read=read,
            backend="triton",
        )[0]  # fmt: skip

    whole = part(0, 30)
    assert_close(torch.cat([part(0, 7), part(7, 8), part(8, 30)], dim=1), whole)


def test_bad_arguments(device: torch.device) -> None:
    rows, table, context = filled_rows(LAYOUTS["4"], [30], device=device)
    read = LatentRead(key_rank=48, value_rank=48, scale=0.1)
    query = torch.randn(1, 3, 2, 48, device=device)
    with pytest.raises(ConfigError, match=r"query_lens is torch\.int64"):
        latent_prefill(query, rows, table, context, context.long(), read=read)
