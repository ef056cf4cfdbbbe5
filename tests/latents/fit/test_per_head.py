"""Latents of each head's own: block structure, exactness, and the best basis of each head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.latents.fit.bits import code_channels
from cacheshrink_hybrid.latents.fit.distortion import channel_costs, channel_variances
from cacheshrink_hybrid.latents.fit.factors import KeyShape
from cacheshrink_hybrid.latents.fit.per_head import per_head_factors
from cacheshrink_hybrid.linalg import whitened_basis
from tests.moments import random_unit

J, D = 3, 8


def _unit():
    return replace(random_unit(J * D, 5), keys=KeyShape(num_heads=J, head_dim=D, rotary_dim=D))


def test_channels_reach_their_own_head_only() -> None:
    factors = per_head_factors(_unit())
    assert factors.key_heads is not None
    for head, block in enumerate(factors.key_up.view(J, D, J * D)):
        for other in range(J):
            own = block[:, factors.key_heads == other]
            assert own.shape == (D, D)
            assert bool(own.any()) == (head == other)


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
        torch.testing.assert_close(losses[part], spectrum, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("widths", [(2, 4, 8), (8,), (4,)])
def test_runs_hold_one_head_after_the_other(widths: tuple[int, ...]) -> None:
    """In every run of keys each head has as many channels, side by side, and the width of a channel
    is that of the same channel of the other heads."""
    unit = _unit()
    full = per_head_factors(unit)
    (coded,) = code_channels([full], [unit], [None], widths, 20.0, formats=[RowFormat()])
    factors, start, kept = coded.factors, 0, 0
    assert factors.key_heads is not None
    for channels, _ in coded.runs:
        if start < factors.key_rank:
            share = channels // J
            heads = factors.key_heads[start : start + channels]
            assert heads.tolist() == [j for j in range(J) for _ in range(share)]
            kept += share
        start += channels
    assert kept * J == factors.key_rank
    # Whatever the order, kept channels are those of the full basis that are worth most.
    losses = (channel_costs(full, unit) * channel_variances(full, unit))[: J * D].view(J, D)
    worth = losses.sum(0).argsort(descending=True)[:kept]
    best = {tuple(full.encoder[j * D + int(i)].tolist()) for j in range(J) for i in worth}
    assert {tuple(row.tolist()) for row in factors.encoder[: factors.key_rank]} == best


def test_heads_must_be_known() -> None:
    with pytest.raises(PlanError, match="number of heads"):
        per_head_factors(random_unit(J * D, 0))
