"""Keys stored rotated about their mean: they turn as keys do, pair by pair, head by head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.latents.attention.rotation import turn_channels, turning_pairs
from cacheshrink_hybrid.latents.fit.bits import code_channels
from cacheshrink_hybrid.latents.fit.distortion import (
    channel_costs,
    channel_variances,
    sampled_latents,
)
from cacheshrink_hybrid.latents.fit.factors import KeyShape, Unit
from cacheshrink_hybrid.latents.fit.rotate import rotate_factors
from cacheshrink_hybrid.linalg import whitened_basis
from tests.moments import random_unit

J, D = 3, 8
WIDTH = J * D
SHAPES = {
    "whole": KeyShape(num_heads=J, head_dim=D, rotary_dim=8),
    "partial": KeyShape(num_heads=J, head_dim=D, rotary_dim=4),
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def _unit(name: str) -> Unit:
    return replace(random_unit(WIDTH, 3), keys=SHAPES[name])


def _rotated_keys(keys: Tensor, shape: KeyShape, angles: Tensor) -> Tensor:
    """Keys (n, J*D) with frequency f of every head turned by angles (n, f)."""
    heads = keys.view(-1, J, D).clone()
    half = shape.rotary_dim // 2
    real, imaginary = heads[..., :half].clone(), heads[..., half : 2 * half].clone()
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    heads[..., :half] = real * cos - imaginary * sin
    heads[..., half : 2 * half] = imaginary * cos + real * sin
    return heads.flatten(1)


@every_shape
def test_channels_turn_with_the_keys(name: str) -> None:
    unit = _unit(name)
    factors = rotate_factors(unit)
    assert factors.frequencies is not None
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(5, 2 * WIDTH, generator=generator, dtype=torch.float64)
    angles = torch.randn(5, SHAPES[name].rotary_dim // 2, generator=generator).double()
    latents = (y - unit.mean) @ factors.encoder.T
    pairs = turning_pairs(factors.frequencies.tolist(), latents.device)
    turned = turn_channels(latents[None], pairs, angles.cos(), angles.sin())[0]
    keys = turned[:, : factors.key_rank] @ factors.key_up.T
    due = _rotated_keys((y - unit.mean)[:, :WIDTH], SHAPES[name], angles)
    torch.testing.assert_close(keys, due)


@every_shape
def test_full_rank_is_exact(name: str) -> None:
    factors = rotate_factors(_unit(name))
    product = factors.up @ factors.encoder
    torch.testing.assert_close(product, torch.eye(2 * WIDTH).double(), atol=1e-6, rtol=0)


@every_shape
def test_pairs_of_a_head_lie_side_by_side_by_falling_loss(name: str) -> None:
    unit = _unit(name)
    factors = rotate_factors(unit)
    assert factors.frequencies is not None and factors.key_heads is not None
    losses = channel_costs(factors, unit) * channel_variances(factors, unit)
    half = SHAPES[name].rotary_dim // 2
    still_losses = []
    for head in range(J):
        own = slice(head * D, (head + 1) * D)
        assert bool((factors.key_heads[own] == head).all())
        assert not factors.key_up[:, own].view(J, D, D)[torch.arange(J) != head].any()
        pairs = losses[own].view(-1, 2).sum(1)
        assert bool((pairs.diff() <= 1e-12).all())
        frequencies = factors.frequencies[head * D // 2 : (head + 1) * D // 2]
        assert sorted(frequencies.tolist()) == sorted([*range(half), *[-1] * (D // 2 - half)])
        still_losses.append(losses[own].view(-1, 2)[frequencies < 0].flatten())
    for head, found in enumerate(still_losses):
        still = slice(head * D + 2 * half, (head + 1) * D)
        if half < D // 2:
            due = whitened_basis(unit.covariance[still, still], unit.metric[still, still]).spectrum
            torch.testing.assert_close(found, due, rtol=1e-3, atol=1e-12)


def test_the_channels_of_a_rotated_pair_are_alike() -> None:
    """One scale, one variance and one cost, the means over all phases of the pair."""
    unit = _unit("whole")
    factors = rotate_factors(unit)
    keys = slice(0, WIDTH)
    up = factors.key_up[:, keys].abs().amax(0).view(-1, 2)
    assert torch.equal(up[:, 0], up[:, 1])
    for found, matrix, scale in (
        (channel_costs(factors, unit), unit.metric, up),
        (channel_variances(factors, unit), unit.covariance, 1 / up),
    ):
        pairs = found[keys].view(-1, 2)
        assert torch.equal(pairs[:, 0], pairs[:, 1])
        at = factors.key_up[:, keys].abs().argmax(0).view(-1, 2)
        due = matrix.diagonal()[at].mean(1) * scale[:, 0].square()
        torch.testing.assert_close(pairs[:, 0], due)


def test_samples_are_of_all_phases() -> None:
    unit = _unit("partial")
    factors = rotate_factors(unit)
    assert factors.frequencies is not None
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(unit.covariance)
    normal = torch.randn(20_000, 2 * WIDTH, generator=generator).double()
    latents = sampled_latents(factors, unit, normal @ root.T + unit.mean)
    pairs = latents[:, :WIDTH].view(-1, WIDTH // 2, 2)[:, factors.frequencies >= 0].double()
    moments = torch.einsum("npi,npj->pij", pairs, pairs) / len(pairs)
    moments = moments / moments[:, 0, 0, None, None]
    assert (moments - torch.eye(2)).abs().max() < 0.1


@pytest.mark.parametrize(("widths", "budget"), [((2, 4, 8), 6.0), ((16,), 40.0)])
def test_pairs_and_heads_go_in_step(widths: tuple[int, ...], budget: float) -> None:
    """In every run of keys each head has as many pairs, side by side; and what is left out costs
    what it costs by the moments of the keys themselves, of whatever phase they are."""
    unit = _unit("whole")
    full = rotate_factors(unit)
    (coded,) = code_channels([full], [unit], [None], widths, budget, formats=[RowFormat()])
    factors, start = coded.factors, 0
    assert factors.key_heads is not None and factors.frequencies is not None
    assert 0 < factors.key_rank < WIDTH
    for channels, _ in coded.runs:
        if start < factors.key_rank:
            heads = factors.key_heads[start : start + channels]
            assert heads.tolist() == [j for j in range(J) for _ in range(channels // J)]
        start += channels
    pairs = factors.encoder[: factors.key_rank].view(-1, 2, 2 * WIDTH)
    for frequency, head, (real, imaginary) in zip(
        factors.frequencies.tolist(), factors.key_heads[::2].tolist(), pairs, strict=True
    ):
        at = head * D + frequency
        assert real.nonzero().item() == at and imaginary.nonzero().item() == at + D // 2
    if widths == (16,):
        left_out = torch.eye(2 * WIDTH).double() - factors.up @ factors.encoder
        due = torch.trace(left_out @ unit.covariance @ left_out.T @ unit.metric)
        assert factors.loss == pytest.approx(float(due), rel=1e-3)


def test_keys_that_cannot_be_rotated_are_refused() -> None:
    shape = KeyShape(num_heads=J, head_dim=D, rotary_dim=8, cannot_rotate="they are normalised")
    with pytest.raises(PlanError, match="normalised"):
        rotate_factors(replace(random_unit(WIDTH, 0), keys=shape))
    with pytest.raises(PlanError, match="give the unit"):
        rotate_factors(random_unit(WIDTH, 0))
