"""A linear layer of each head's own channels, however many runs they lie in."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.headwise_linear import HeadwiseLinear, by_head, in_runs

J, D = 3, 4


@pytest.mark.parametrize("shares", [(5,), (2, 1, 3)])
@pytest.mark.parametrize("shape", [(1, 6), (2, 6)])
def test_keys_are_of_each_heads_own_channels(shares: tuple[int, ...], shape: tuple) -> None:
    own = torch.randn(*shape, J, sum(shares))
    x = in_runs(own, shares)
    assert x.shape == (*shape, J * sum(shares))
    assert torch.equal(by_head(x, J, shares), own)
    linear = HeadwiseLinear(J, D, shares)
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    due = (own[..., None, :] * linear.weight).sum(-1).flatten(-2) + linear.bias
    torch.testing.assert_close(linear(x), due)
