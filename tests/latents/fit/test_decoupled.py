"""Keys split into a rotary key for all heads and the rest: the loss formula, and that nothing of
its form loses less."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.latents.fit.decoupled import RISK, at_best_width, decoupled, split_errors
from cacheshrink_hybrid.latents.fit.factors import KeyShape, LatentFactors, Unit
from cacheshrink_hybrid.ranks import global_ranks
from tests.moments import random_spd, random_unit

J, D = 3, 8
WIDTH = J * D
ROTATED = {"whole": 8, "partial": 4}
every_shape = pytest.mark.parametrize("name", ROTATED)


@cache
def _unit(name: str, seed: int = 3) -> Unit:
    half = ROTATED[name] // 2
    angles = torch.arange(16)[:, None] * 0.3 ** torch.arange(half).double()
    keys = KeyShape(num_heads=J, head_dim=D, rotary_dim=2 * half, block_angles=angles)
    split = random_spd(3 * WIDTH, 4000 + seed)
    if name == "partial":  # what is not rotated costs the same on either side
        still = torch.arange(WIDTH).view(J, D)[:, 2 * half :].flatten()
        same = torch.eye(3 * WIDTH).double()
        same[still, still], same[still, 2 * WIDTH + still] = 0.0, 1.0
        split = same @ split @ same.T
        split += 1e-12 * torch.eye(3 * WIDTH).double()
    return replace(random_unit(WIDTH, seed), keys=keys, split_metric=split)


def _factors(unit: Unit, width: int, rank: int) -> LatentFactors:
    (bases,) = decoupled([unit], qk_rope_head_dim=width)
    (factors,) = bases.at([width + rank])
    return factors


def _moment(unit: Unit) -> Tensor:
    return unit.covariance + torch.outer(unit.mean, unit.mean)


def _loss(unit: Unit, factors: LatentFactors) -> float:
    """E e^T M e over vectors with the unit's moments about zero."""
    values, vectors = torch.linalg.eigh(_moment(unit))
    vectors = (vectors * values.clamp_min(0).sqrt()).T  # one for each direction
    errors = split_errors(factors, vectors)
    assert unit.split_metric is not None
    return float(torch.einsum("tn,nm,tm->", errors, unit.split_metric, errors))


@every_shape
def test_full_width_is_exact(name: str) -> None:
    unit, width = _unit(name), J * ROTATED[name]
    factors = _factors(unit, width, 2 * WIDTH - width)
    y = torch.randn(5, 2 * WIDTH).double()
    product = y @ factors.encoder.T @ factors.up.T
    torch.testing.assert_close(product, y, atol=1e-6, rtol=0)
    turning = y @ factors.encoder[:width].T @ factors.key_up[:, :width].T
    rotated = torch.arange(WIDTH).view(J, D)[:, : ROTATED[name]].flatten()
    torch.testing.assert_close(turning[:, rotated], y[:, rotated])
    assert factors.loss < 1e-9


@every_shape
@pytest.mark.parametrize("width, rank", [(2, 4), (4, 9), (8, 20)])
def test_loss_is_what_errors_cost(name: str, width: int, rank: int) -> None:
    unit = _unit(name)
    factors = _factors(unit, width, rank)
    assert factors.loss == pytest.approx(_loss(unit, factors), rel=1e-6)
    assert factors.loss > 0


@every_shape
def test_no_other_latent_loses_less(name: str) -> None:
    """Neither another encoder nor other bases do, whatever is taken for the direction."""
    unit = _unit(name)
    best = _factors(unit, 4, 9)
    generator = torch.Generator().manual_seed(0)
    for field, begin in (("encoder", (4, 0)), ("key_up", (0, 4)), ("value_up", (0, 0))):
        known = getattr(best, field)
        for _ in range(5):
            change = torch.randn(known.shape, generator=generator).double() * known.abs().mean()
            change[: begin[0]] = 0
            change[:, : begin[1]] = 0
            for step in (1e-3, -1e-3):
                other = replace(best, **{field: known + step * change})
                assert _loss(unit, other) >= best.loss * (1 - 1e-9)


@every_shape
def test_the_rotary_key_commutes_with_the_rotation(name: str) -> None:
    unit = _unit(name)
    factors = _factors(unit, 6, 4)
    half, angle = ROTATED[name] // 2, 0.3 ** torch.arange(ROTATED[name] // 2).double()
    keys = torch.randn(WIDTH).double()

    def turned(x: Tensor, angles: Tensor) -> Tensor:
        first, second = x[..., : len(angles)], x[..., len(angles) : 2 * len(angles)]
        cos, sin = angles.cos(), angles.sin()
        rest = x[..., 2 * len(angles) :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    down = factors.encoder[:6, :WIDTH]
    frequencies = list(factors.rotary_frequencies)
    assert max(frequencies) < half
    before = down @ turned(keys.view(J, D), angle).flatten()
    torch.testing.assert_close(before, turned(down @ keys, angle[frequencies]))


def test_the_rotary_key_has_the_frequencies_that_rotation_is_worth_most_for() -> None:
    """Where unrotated keys cost what rotated ones do, rotation is worth nothing."""
    unit = _unit("whole")
    metric = unit.split_metric
    assert metric is not None
    slow = torch.arange(WIDTH).view(J, D)[:, [0, 1, 3, 4, 5, 7]].flatten()
    same = torch.eye(3 * WIDTH).double()
    same[slow] = 0
    same[slow, 2 * WIDTH + slow] = 1.0
    metric = same @ metric @ same.T + 1e-9 * torch.eye(3 * WIDTH).double()
    factors = _factors(replace(unit, split_metric=metric), 4, 8)
    assert factors.rotary_frequencies == (2, 2)


def test_layers_share_the_frequencies_that_are_worth_most_to_all() -> None:
    units = [_unit("whole"), replace(_unit("whole", 4), num_layers=2)]
    chosen = {
        bases.at([12])[0].rotary_frequencies for bases in decoupled(units, qk_rope_head_dim=6)
    }
    assert len(chosen) == 1


def test_layers_without_rotation_get_a_joint_latent() -> None:
    still = replace(random_unit(WIDTH, 7), keys=KeyShape(num_heads=J, head_dim=D))
    first, second = decoupled([_unit("whole"), still], qk_rope_head_dim=4)
    assert first.at([9])[0].method == "decoupled_rope"
    assert second.at([9])[0].method == "joint"
    with pytest.raises(PlanError, match="this model has none"):
        decoupled([still], qk_rope_head_dim=4)


@every_shape
def test_the_width_that_is_chosen_loses_no_more_than_any_that_is_given(name: str) -> None:
    """What no latent mends counts by its risk."""
    units, budget = [_unit(name), _unit(name, 5)], 2 * 2 * 20

    def loss(width: int | None) -> float:
        factors = at_best_width(units, width, lambda spectra: global_ranks(spectra, budget))
        assert sum(2 * len(factor.encoder) for factor in factors) <= budget
        chosen = 2 * len(factors[0].rotary_frequencies)
        whole = [bases.at([2 * WIDTH])[0] for bases in decoupled(units, qk_rope_head_dim=chosen)]
        return sum(
            own.loss + (RISK - 1) * full.loss for own, full in zip(factors, whole, strict=True)
        )

    assert loss(None) <= min(loss(2), loss(4), loss(ROTATED[name])) * (1 + 1e-9)


def test_what_cannot_be_split_is_refused() -> None:
    unit = _unit("whole")
    for width in (3, 0, 2 * WIDTH):
        with pytest.raises(PlanError, match=f"qk_rope_head_dim={width} is not a number"):
            decoupled([unit], qk_rope_head_dim=width)
    (bases,) = decoupled([unit], qk_rope_head_dim=8)
    with pytest.raises(PlanError, match="leaves none of 8 channels"):
        bases.at([8])
    with pytest.raises(PlanError, match="take statistics with a CompressionConfig"):
        decoupled([replace(unit, split_metric=None)], qk_rope_head_dim=4)
    assert unit.keys is not None
    fixed = replace(unit.keys, cannot_decouple="they are normalised")
    with pytest.raises(PlanError, match="cannot be decoupled: they are normalised"):
        decoupled([replace(unit, keys=fixed)], qk_rope_head_dim=4)


def test_pairs_of_neighbours_are_those_of_halves_in_another_order() -> None:
    unit = _unit("partial")
    assert unit.keys is not None
    order = torch.arange(WIDTH).view(J, D)
    order = torch.cat([order[:, [0, 2, 1, 3]], order[:, 4:]], dim=1).flatten()
    order = torch.cat([order + part * WIDTH for part in range(3)])  # halves lie side by side
    two, three = order[: 2 * WIDTH], order
    assert unit.split_metric is not None
    other = replace(
        unit,
        covariance=unit.covariance[two][:, two],
        metric=unit.metric[two][:, two],
        mean=unit.mean[two],
        split_metric=unit.split_metric[three][:, three],
        keys=replace(unit.keys, neighbours=True),
    )
    due, found = _factors(unit, 4, 9), _factors(other, 4, 9)
    assert found.rotary_frequencies == due.rotary_frequencies
    assert found.loss == pytest.approx(due.loss)
    assert _loss(other, found) == pytest.approx(found.loss, rel=1e-6)
    product = due.encoder.T @ due.up.T
    torch.testing.assert_close(found.encoder.T @ found.up.T, product[two][:, two])
