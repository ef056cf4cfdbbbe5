"""Keys stored rotated by their place in a block of slots: the moments of a block, and its bases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.latents.fit.bases import joint
from cacheshrink_hybrid.latents.fit.distortion import channel_variances, sampled_latents
from cacheshrink_hybrid.latents.fit.factors import Bases, KeyShape, Unit
from cacheshrink_hybrid.latents.fit.rotate import (
    in_blocks,
    rotated,
    rotated_joint,
    seen_in_blocks,
)
from cacheshrink_hybrid.linalg import projection_loss
from tests.moments import random_unit

J, D, BLOCK = 3, 8, 16
WIDTH = J * D
ROTATED = {"whole": 8, "partial": 4}
every_shape = pytest.mark.parametrize("name", ROTATED)
every_kind = pytest.mark.parametrize("fit", [rotated, rotated_joint])


def _unit(name: str) -> Unit:
    half = ROTATED[name] // 2
    angles = torch.arange(BLOCK)[:, None] * 0.3 ** torch.arange(half).double()
    keys = KeyShape(num_heads=J, head_dim=D, rotary_dim=2 * half, block_angles=angles)
    return replace(random_unit(WIDTH, 3), keys=keys)


def _rotation(name: str, place: int) -> Tensor:
    """R_j over [k; v], (2*J*D, 2*J*D)."""
    half = ROTATED[name] // 2
    turn = torch.polar(torch.ones(half).double(), place * 0.3 ** torch.arange(half).double())
    head = torch.eye(D).double()
    at = torch.arange(half)
    head[at, at], head[at, half + at] = turn.real, -turn.imag
    head[half + at, at], head[half + at, half + at] = turn.imag, turn.real
    return torch.block_diag(*[head] * J, torch.eye(WIDTH).double())


def _full(bases: Bases) -> list[int]:
    return [len(spectrum.values) for spectrum in bases.spectra]


@every_shape
def test_moments_are_the_means_over_the_places_of_a_block(name: str) -> None:
    unit = _unit(name)
    seen = seen_in_blocks(unit)
    for found, matrix in ((seen.covariance, unit.covariance), (seen.metric, unit.metric)):
        turned = [_rotation(name, j) @ matrix @ _rotation(name, j).T for j in range(BLOCK)]
        torch.testing.assert_close(found, torch.stack(turned).mean(0))
    assert torch.equal(seen.mean, unit.mean)


@every_shape
def test_vectors_turn_by_their_places_and_back(name: str) -> None:
    unit, places = _unit(name), torch.tensor([3, 0, 15, 3])
    y = torch.randn(4, 2 * WIDTH).double()
    turned = in_blocks(y, unit.keys, places)
    due = torch.stack([_rotation(name, int(j)) @ row for j, row in zip(places, y, strict=True)])
    torch.testing.assert_close(turned, due)
    torch.testing.assert_close(in_blocks(turned, unit.keys, places, back=True), y)


@every_kind
@every_shape
def test_full_rank_is_exact(name: str, fit) -> None:
    (bases,) = fit([_unit(name)])
    (factors,) = bases.at(_full(bases))
    product = factors.up @ factors.encoder
    torch.testing.assert_close(product, torch.eye(2 * WIDTH).double(), atol=1e-6, rtol=0)


@every_kind
def test_loss_is_about_the_mean_over_the_places(fit) -> None:
    """Covariance and metric are averaged apart, as if errors and costs were of any places."""
    unit = _unit("partial")
    (bases,) = fit([unit])
    (factors,) = bases.at([8] * len(bases.spectra))
    losses = []
    for place in range(BLOCK):
        R = _rotation("partial", place)
        up, down = R.T @ factors.up, factors.encoder @ R
        losses.append(projection_loss(up, down, unit.covariance, unit.metric))
    assert factors.loss == pytest.approx(sum(losses) / BLOCK, rel=2e-2)
    assert max(losses) > 1.05 * min(losses)


def test_one_latent_loses_no_more_than_two_and_no_less_than_keys_that_are_not_rotated() -> None:
    unit = _unit("whole")
    (still,), (one,), (two,) = joint([unit]), rotated_joint([unit]), rotated([unit])
    for rank in (6, 16, 30):
        best = min(two.at([k, rank - k])[0].loss for k in range(1, rank))
        found = one.at([rank])[0].loss
        assert still.at([rank])[0].loss <= found <= best


@every_kind
def test_samples_are_of_all_places(fit) -> None:
    unit = _unit("partial")
    (bases,) = fit([unit])
    ((factors, seen),) = bases.at_full_rank()
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(unit.covariance)
    normal = torch.randn(20_000, 2 * WIDTH, generator=generator).double()
    latents = sampled_latents(factors, seen, normal @ root.T + unit.mean)
    found = latents.double().square().mean(0)
    torch.testing.assert_close(found, channel_variances(factors, seen), atol=0, rtol=0.06)


@every_kind
def test_keys_that_cannot_be_rotated_are_refused(fit) -> None:
    shape = KeyShape(num_heads=J, head_dim=D, rotary_dim=8, cannot_rotate="they are normalised")
    with pytest.raises(PlanError, match="normalised"):
        fit([replace(random_unit(WIDTH, 0), keys=shape)])
    with pytest.raises(PlanError, match="give the unit"):
        fit([random_unit(WIDTH, 0)])
