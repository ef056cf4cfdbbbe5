"""Bases of keys and values are optimal, exact where they can be, and cost what they say."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from cacheshrink_hybrid.calibration.calibrate import Moments
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.errors import FactorizationError, PlanError
from cacheshrink_hybrid.latents.fit.factors import LatentFactors, Unit, make_unit
from cacheshrink_hybrid.latents.fit.kinds import factorize
from cacheshrink_hybrid.latents.fit.statistics import LatentStatistics
from cacheshrink_hybrid.linalg import whitened_basis
from cacheshrink_hybrid.methods import LATENT_KINDS
from cacheshrink_hybrid.spec import BYTES_16BIT
from tests.moments import random_spd, random_unit, restored
from tests.tolerances import FLOAT64

WIDTH = 6
FULL_BYTES = 2 * WIDTH * BYTES_16BIT
SEEDS = range(4)
EXACT_LOSS = 1e-20
METHODS = [
    "auto",
    *(kind.name for kind in LATENT_KINDS.values() if kind.ranked and not kind.rotary_only),
]

every_method = pytest.mark.parametrize("method", METHODS)


def factors_of(units: list[Unit], method: str, budget: float, **settings) -> list[LatentFactors]:
    return factorize(units, CompressionConfig(compression_method=method, **settings), budget)


def stored_bytes(units: list[Unit], factors: list[LatentFactors]) -> int:
    return sum(
        BYTES_16BIT * factor.encoder.shape[0] * unit.num_layers
        for unit, factor in zip(units, factors, strict=True)
    )


def total_loss(units: list[Unit], factors: list[LatentFactors]) -> float:
    return sum(f.loss * u.num_layers for u, f in zip(units, factors, strict=True))


def samples_and_unit(rank: int, seed: int, count: int = 400) -> tuple[torch.Tensor, Unit]:
    """Vectors that vary in `rank` directions around a mean, and their statistics."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    samples = normal(count, rank) @ normal(rank, 2 * WIDTH) + 3 * normal(2 * WIDTH)
    moments = Moments(2 * WIDTH)
    moments.add(samples)
    return samples, Unit(
        covariance=moments.covariance,
        metric=random_spd(2 * WIDTH, seed),
        mean=moments.mean,
        num_layers=1,
    )


@pytest.mark.parametrize("rank", [1, 3, 8, 11])
@pytest.mark.parametrize("seed", SEEDS)
def test_measured_loss_is_the_discarded_spectrum(seed: int, rank: int) -> None:
    samples, unit = samples_and_unit(2 * WIDTH, seed)
    (factors,) = factors_of([unit], "joint", rank * BYTES_16BIT)
    errors = samples - restored(factors, samples)
    measured = float(torch.einsum("ni,ij,nj->", errors, unit.metric, errors)) / len(samples)
    discarded = float(whitened_basis(unit.covariance, unit.metric).spectrum[rank:].sum())
    assert factors.encoder.shape[0] == rank
    assert measured == pytest.approx(discarded, rel=FLOAT64)
    assert factors.loss == pytest.approx(discarded, rel=FLOAT64)


@every_method
@pytest.mark.parametrize("seed", SEEDS)
def test_reported_errors_are_measured_errors(seed: int, method: str) -> None:
    samples, unit = samples_and_unit(2 * WIDTH, seed)
    (factors,) = factors_of([unit], method, 5 * BYTES_16BIT)
    errors = samples - restored(factors, samples)
    loss = float(torch.einsum("ni,ij,nj->", errors, unit.metric, errors)) / len(samples)
    squared = float(errors.square().sum()) / len(samples)
    variance = float((samples - samples.mean(0)).square().sum()) / len(samples)
    assert factors.loss == pytest.approx(loss, rel=FLOAT64)
    assert factors.expected_error == pytest.approx(squared, rel=FLOAT64)
    assert factors.relative_error == pytest.approx(squared / variance, rel=FLOAT64)
    assert 0 < factors.expected_error <= factors.error_bound


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_data_of_rank_r_is_restored_exactly_at_rank_r(rank: int) -> None:
    samples, unit = samples_and_unit(rank, seed=0)
    (factors,) = factors_of([unit], "joint", rank * BYTES_16BIT)
    assert factors.encoder.shape[0] == rank
    assert float((restored(factors, samples) - samples).abs().max()) < 1e-8
    assert factors.relative_error < EXACT_LOSS + FLOAT64


@every_method
def test_full_rank_restores_everything(method: str) -> None:
    samples, unit = samples_and_unit(2 * WIDTH, seed=1)
    (factors,) = factors_of([unit], method, FULL_BYTES)
    assert float((restored(factors, samples) - samples).abs().max()) < 1e-8


@every_method
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_loss_falls_as_the_budget_grows(method: str, allocation: str) -> None:
    units = [random_unit(WIDTH, seed, apart=True) for seed in range(4)]
    losses = []
    for budget in range(4 * 2 * BYTES_16BIT, 4 * FULL_BYTES + 1, 4 * 2 * BYTES_16BIT):
        factors = factors_of(units, method, budget, rank_allocation=allocation)
        losses.append(total_loss(units, factors))
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < FLOAT64 < losses[0]


@pytest.mark.parametrize("share", [0.25, 0.4, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
def test_joint_never_loses_more_than_separate(seed: int, share: float) -> None:
    units = [random_unit(WIDTH, 10 * seed + i, num_layers=1) for i in range(3)]
    budget = share * 3 * FULL_BYTES
    joint = factors_of(units, "joint", budget)
    separate = factors_of(units, "separate", budget)
    assert stored_bytes(units, joint) == stored_bytes(units, separate)
    assert total_loss(units, joint) <= total_loss(units, separate) * (1 + FLOAT64)


@pytest.mark.parametrize("share", [0.25, 0.4, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
def test_xkv_never_loses_less_than_separate(seed: int, share: float) -> None:
    """Sharing a basis only constrains it. Without cross terms in the metric, where separate bases
    are the best that keys and values apart can have."""
    units = [random_unit(WIDTH, 10 * seed + i, apart=True) for i in range(4)]
    budget = share * 4 * FULL_BYTES
    shared = factors_of(units, "xkv", budget, cross_layer_group_size=2)
    separate = factors_of(units, "separate", budget)
    assert stored_bytes(units, shared) <= stored_bytes(units, separate)
    assert total_loss(units, shared) >= total_loss(units, separate) * (1 - FLOAT64)


@pytest.mark.parametrize("seed", SEEDS)
def test_auto_takes_separate_only_where_it_loses_no_more(seed: int) -> None:
    """Within 1 % of joint, at no more bytes."""
    units = [random_unit(WIDTH, 10 * seed + i, apart=i == 0) for i in range(3)]
    # Keys and values that vary apart: separate bases lose nothing.
    width = units[0].key_width
    covariance = units[0].covariance.clone()
    covariance[:width, width:] = covariance[width:, :width] = 0
    units[0] = dataclasses.replace(units[0], covariance=covariance)
    budget = 0.4 * 3 * FULL_BYTES
    auto, joint = factors_of(units, "auto", budget), factors_of(units, "joint", budget)
    assert auto[0].method == "separate"
    assert {factor.method for factor in auto[1:]} == {"joint"}
    for one, other in zip(auto, joint, strict=True):
        assert one.encoder.shape == other.encoder.shape
        assert one.loss <= 1.01 * other.loss


@every_method
@pytest.mark.parametrize("seed", SEEDS)
def test_error_bound(seed: int, method: str) -> None:
    units = [random_unit(WIDTH, 10 * seed + i) for i in range(4)]
    for factors in factors_of(units, method, 4 * FULL_BYTES / 3):
        assert factors.expected_error <= factors.error_bound


@pytest.mark.parametrize("method", ["joint", "separate", "auto"])
@pytest.mark.parametrize("budget", [33.0, 40.0, 41.5, 63.9])
def test_budget_is_hit_from_below_within_one_step(method: str, budget: float) -> None:
    units = [random_unit(WIDTH, i) for i in range(4)]
    spent = stored_bytes(units, factors_of(units, method, budget))
    assert budget - BYTES_16BIT < spent <= budget


def test_budget_of_shared_bases_counts_every_layer() -> None:
    units = [random_unit(WIDTH, 0, num_layers=3), random_unit(WIDTH, 1, num_layers=1)]
    for method in METHODS:
        factors = factors_of(units, method, 60)
        assert 60 - 4 * BYTES_16BIT < stored_bytes(units, factors) <= 60


@every_method
def test_same_statistics_same_bits(method: str) -> None:
    units = [random_unit(WIDTH, i) for i in range(4)]
    first, second = (factors_of(units, method, 4 * FULL_BYTES / 3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for name in ("encoder", "key_up", "value_up", "mean"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert (one.loss, one.error_bound) == (other.loss, other.error_bound)


def test_channels_have_unit_variance() -> None:
    """So that a low-precision format treats them alike."""
    unit = random_unit(WIDTH, 0)
    for method in ("joint", "separate"):
        (factors,) = factors_of([unit], method, FULL_BYTES / 2)
        covariance = factors.encoder @ unit.covariance @ factors.encoder.T
        # A floor of 1 % of the largest deviation keeps channels that hardly vary below one.
        variance = covariance.diagonal()
        assert torch.allclose(variance[:4], torch.ones(4, dtype=torch.float64), rtol=0.02)
        assert (variance <= 1 + 1e-9).all()


def test_groups_of_xkv() -> None:
    units = [random_unit(WIDTH, i) for i in range(7)]
    factors = factors_of(
        units, "xkv", 7 * FULL_BYTES / 2, cross_layer_group_size=3, xkv_skip_early_layers=2
    )
    assert [factor.basis_group for factor in factors] == [0, 1, 2, 2, 2, 3, 3]
    by_group: dict[int | None, torch.Tensor] = {}
    for factor in factors:
        first = by_group.setdefault(factor.basis_group, factor.key_up)
        assert torch.equal(first, factor.key_up)


def test_xkv_encoder_is_the_best_for_its_layer() -> None:
    unit, other = random_unit(WIDTH, 0, apart=True), random_unit(WIDTH, 1, apart=True)
    factors = factors_of([unit, other], "xkv", FULL_BYTES)[0]
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(300, 2 * WIDTH, generator=generator, dtype=torch.float64)

    def loss(candidate: LatentFactors) -> float:
        errors = samples - restored(candidate, samples)
        return float(torch.einsum("ni,ij,nj->", errors, unit.metric, errors))

    for seed in range(5):
        generator.manual_seed(seed)
        step = torch.randn(factors.encoder.shape, generator=generator, dtype=torch.float64)
        key_rank = factors.key_up.shape[1]
        step[:key_rank, WIDTH:] = 0
        step[key_rank:, :WIDTH] = 0
        moved = dataclasses.replace(factors, encoder=factors.encoder + 1e-3 * step)
        assert loss(moved) > loss(factors)


def test_xkv_needs_equal_widths_within_a_group() -> None:
    units = [random_unit(WIDTH, 0), random_unit(WIDTH + 1, 1)]
    with pytest.raises(PlanError, match=r"equal widths of keys and of values.*'separate'"):
        factors_of(units, "xkv", FULL_BYTES)


@pytest.mark.parametrize("method", ["joint", "separate", "xkv"])
def test_explicit_rank(method: str) -> None:
    units = [random_unit(WIDTH, i) for i in range(2)]
    for factors in factors_of(units, method, 0, d_latent=4):
        assert factors.encoder.shape[0] == (4 if method == "joint" else 8)


def test_unit_is_damped_and_checked() -> None:
    statistics = LatentStatistics(
        mean=torch.zeros(4, dtype=torch.float64),
        covariance=torch.eye(4, dtype=torch.float64),
        metric=torch.diag(torch.tensor([2.0, 0, 0, 0], dtype=torch.float64)),
        num_tokens=9,
    )
    unit = make_unit(statistics, num_layers=1, damping=0.5)
    assert unit.metric.diagonal().tolist() == [3.0, 1.0, 1.0, 1.0]
    broken = dataclasses.replace(statistics, covariance=torch.full((4, 4), float("inf")))
    with pytest.raises(FactorizationError, match="covariance has non-finite entries"):
        make_unit(broken, num_layers=1, damping=0.5)
