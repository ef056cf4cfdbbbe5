"""How close a kernel comes to its reference."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Largest difference, relative to the largest number of a result: float32 products and sums, or
operands of 16 bits."""


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
