"""Bases that commute with rotation: exact at full rank, nested, best in the averaged moments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.latents.attention.rotation import turn_channels, turning_pairs
from cacheshrink_hybrid.latents.fit.distortion import channel_costs, channel_variances
from cacheshrink_hybrid.latents.fit.factors import KeyShape, Unit
from cacheshrink_hybrid.latents.fit.rotate import rotate_factors, rotated_unit
from tests.moments import random_unit

J, D = 3, 8
SHAPES = {
    "whole": KeyShape(num_heads=J, head_dim=D, rotary_dim=8),
    "partial": KeyShape(num_heads=J, head_dim=D, rotary_dim=4),
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def _unit(name: str) -> Unit:
    return replace(random_unit(J * D, 3), keys=SHAPES[name])


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
    unit = rotated_unit(_unit(name))
    factors = rotate_factors(unit)
    assert factors.frequencies is not None
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(5, 2 * J * D, generator=generator, dtype=torch.float64)
    angles = torch.randn(5, SHAPES[name].rotary_dim // 2, generator=generator).double()
    latents = (y - unit.mean) @ factors.encoder.T
    pairs = turning_pairs(factors.frequencies.tolist(), latents.device)
    turned = turn_channels(latents[None], pairs, angles.cos(), angles.sin())[0]
    keys = turned[:, : factors.key_rank] @ factors.key_up.T
    due = _rotated_keys(y[:, : J * D], SHAPES[name], angles)
    still = unit.mean[: J * D].view(J, D)[:, SHAPES[name].rotary_dim :]
    due.view(-1, J, D)[..., SHAPES[name].rotary_dim :] -= still
    torch.testing.assert_close(keys, due)


@every_shape
def test_averaged_moments_do_not_change_under_rotation(name: str) -> None:
    unit = rotated_unit(_unit(name))
    generator = torch.Generator().manual_seed(1)
    angles = torch.randn(1, SHAPES[name].rotary_dim // 2, generator=generator).double()
    eye = torch.eye(J * D, dtype=torch.float64)
    turn = _rotated_keys(eye, SHAPES[name], angles.expand(J * D, -1)).T
    for matrix in (unit.covariance, unit.metric):
        keys = matrix[: J * D, : J * D]
        torch.testing.assert_close(turn @ keys @ turn.T, keys)
        assert torch.linalg.eigvalsh(keys)[0] > 0


@every_shape
def test_losses_of_channels_are_those_of_the_averaged_spectrum(name: str) -> None:
    unit = rotated_unit(_unit(name))
    factors = rotate_factors(unit)
    losses = channel_costs(factors, unit) * channel_variances(factors, unit)
    total = torch.trace(unit.covariance @ unit.metric)
    keys = slice(0, J * D)
    spectrum = torch.linalg.eigvals(unit.covariance[keys, keys] @ unit.metric[keys, keys]).real
    found = losses[: J * D].sort().values
    torch.testing.assert_close(found, spectrum.sort().values, rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(losses.sum(), total, rtol=1e-3, atol=0.0)


def test_real_and_imaginary_parts_are_worth_the_same() -> None:
    unit = rotated_unit(_unit("whole"))
    factors = rotate_factors(unit)
    losses = channel_costs(factors, unit) * channel_variances(factors, unit)
    pairs = losses[: J * D].view(-1, 2)
    torch.testing.assert_close(pairs[:, 0], pairs[:, 1])


def test_keys_that_cannot_be_rotated_are_refused() -> None:
    shape = KeyShape(num_heads=J, head_dim=D, rotary_dim=8, cannot_rotate="they are normalised")
    with pytest.raises(PlanError, match="normalised"):
        rotated_unit(replace(random_unit(J * D, 0), keys=shape))
    with pytest.raises(PlanError, match="give the unit"):
        rotate_factors(random_unit(J * D, 0))
