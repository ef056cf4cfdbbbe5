"""Latents of each head's own: block structure, exactness, and the best basis of each head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.factorize import KeyShape
from cacheshrink_hybrid.factorize.coding import channel_costs, channel_variances
from cacheshrink_hybrid.factorize.per_head import per_head_factors
from cacheshrink_hybrid.linalg import whitened_basis
from tests.moments import random_unit

J, D = 3, 8


def _unit():
    return replace(random_unit(J * D, 5), keys=KeyShape(num_heads=J, head_dim=D, rotary_dim=D))


def test_channels_reach_their_own_head_only() -> None:
    factors = per_head_factors(_unit())
    blocks = factors.key_up.view(J, D, D, J)  # head, channel of y, i, head of the channel
    for head in range(J):
        for other in range(J):
            assert (blocks[head, :, :, other].abs().max() > 0) == (head == other)


def test_full_rank_is_exact() -> None:
    factors = per_head_factors(_unit())
    product = factors.up @ factors.encoder
    torch.testing.assert_close(product, torch.eye(2 * J * D).double(), atol=1e-6, rtol=0)


def test_losses_are_those_of_each_heads_spectrum() -> None:
    unit = _unit()
    factors = per_head_factors(unit)
    losses = (channel_costs(factors, unit) * channel_variances(factors, unit))[: J * D]
    for head in range(J):
        part = slice(head * D, (head + 1) * D)
        spectrum = whitened_basis(unit.covariance[part, part], unit.metric[part, part]).spectrum
        torch.testing.assert_close(losses[head::J], spectrum, rtol=1e-6, atol=1e-12)


def test_heads_must_be_known() -> None:
    with pytest.raises(PlanError, match="number of heads"):
        per_head_factors(random_unit(J * D, 0))
