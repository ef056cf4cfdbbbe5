"""Which products are rounded to bfloat16, and that sums are not."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid import precision
from cacheshrink_hybrid.precision import fast_products, without_autocast


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_products_are_rounded_where_that_is_faster(monkeypatch, dtype, able: bool) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: able)
    x = torch.randn(16, 1024, dtype=dtype)
    with fast_products(x):
        y = x @ x.T
        with without_autocast(x):
            exact = x @ x.T
    assert torch.equal(exact, x @ x.T)
    if able and dtype == torch.float32:
        rounded = x.bfloat16().double()
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, (rounded @ rounded.T).bfloat16())
    else:
        assert torch.equal(y, exact)


def test_a_torch_that_cannot_tell_rounds_nothing(monkeypatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not precision.multiplies_bfloat16()
