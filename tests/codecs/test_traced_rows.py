"""Coding as one operation of a compiled graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs import RowCodec
from cacheshrink_hybrid.codecs.traced_rows import decode_rows, encode_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("weighted", "runs"),
    [(True, ((8, 8), (8, 5), (16, 2))), (False, ((4, 16), (4, 4))), (True, ((9, 3),))],
)
def test_operations(weighted: bool, runs: tuple[tuple[int, int], ...], dtype: torch.dtype) -> None:
    """In a graph to the bit what the codec gives, for tokens of all sizes and lost ones."""
    codec = RowCodec(runs)
    latent = torch.randn(2, 9, codec.num_channels) * torch.logspace(-2, 2, 9)[:, None]
    latent[1, 3, 2] = torch.nan
    latent = latent.to(dtype)
    costs = torch.linspace(1, 0.1, codec.num_channels) if weighted else None

    @torch.compile(backend="aot_eager", fullgraph=True)
    def coded(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = encode_rows(codec, x, costs)
        return rows, decode_rows(codec, rows, dtype)

    rows, decoded = coded(latent)
    assert torch.equal(rows, codec.encode(latent, costs))
    due = codec.decode(rows, dtype)
    torch.testing.assert_close(decoded, due, rtol=0, atol=0, equal_nan=True)
    for name, given in (("encode_rows", (latent, costs)), ("decode_rows", (rows, dtype))):
        operation = getattr(torch.ops.cacheshrink_hybrid, name).default
        torch.library.opcheck(
            operation, (*given, *codec.description), test_utils=("test_schema", "test_faketensor")
        )
