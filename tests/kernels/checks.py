"""How close a kernel comes to its reference."""

from __future__ import annotations

import torch
from torch import Tensor

from cacheshrink_hybrid.codecs.row_layout import RowLayout
from cacheshrink_hybrid.kernels.latents.row_reference import decode_rows

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Largest difference, relative to the largest number of a result: float32 products and sums, or
operands of 16 bits."""
GAIN_TOLERANCE = 1e-4
"""By how much of it the error of a row may differ, where two gains are as good as each other."""


def assert_close(got: Tensor, due: Tensor, *, factor: float = 1.0) -> None:
    """Same type and shape, NaN in the same places, and close by the table above."""
    assert got.dtype == due.dtype
    assert got.shape == due.shape
    assert torch.equal(got.isnan(), due.isnan())
    if not got.numel():
        return
    size = due.float().nan_to_num().abs().max().clamp_min(1e-6)
    error = (got.float() - due.float()).nan_to_num().abs().max() / size
    assert error <= factor * TOLERANCE[got.dtype], f"relative error {float(error):.2e}"


def assert_same_rows(
    got: Tensor, due: Tensor, latent: Tensor, layout: RowLayout, costs: Tensor | None = None
) -> None:
    """Rows (N, row_bytes) of latents (N, R): the same bytes, or another gain that is as good."""
    same = torch.ones(len(due), dtype=torch.bool, device=due.device)
    if layout.gain_byte is not None:
        same = got[:, layout.gain_byte] == due[:, layout.gain_byte]
    assert torch.equal(got[same], due[same])
    errors = (row_errors(rows[~same], latent[~same], layout, costs) for rows in (got, due))
    torch.testing.assert_close(*errors, rtol=GAIN_TOLERANCE, atol=0.0)


def row_errors(
    stored: Tensor, latent: Tensor, layout: RowLayout, costs: Tensor | None = None
) -> Tensor:
    """Weighted squared errors (N,) of the coded channels of rows of latents."""
    coded = torch.zeros(layout.num_channels, device=latent.device)
    for run in layout.runs:
        coded[run.at_channel] = float(run.kind.coded)
    weights = coded if costs is None else coded * costs
    difference = decode_rows(stored, layout) - latent.float()
    return (difference.nan_to_num().square() * weights).sum(dim=-1)
