"""Ranks under a byte budget, against all other choices."""

from __future__ import annotations

import itertools

import pytest
import torch

from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.ranks import Spectrum, fixed_ranks, global_ranks, uniform_ranks


def random_spectra(seed: int, sizes=(4, 5, 3), layers=(1, 1, 1)) -> list[Spectrum]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Spectrum(
            values=torch.rand(size, generator=generator, dtype=torch.float64).sort(descending=True)[
                0
            ],
            bytes_per_channel=2,
            num_layers=count,
        )
        for size, count in zip(sizes, layers, strict=True)
    ]


def spent(spectra: list[Spectrum], ranks: list[int]) -> int:
    return sum(r * s.step_bytes for r, s in zip(ranks, spectra, strict=True))


def lost(spectra: list[Spectrum], ranks: list[int]) -> float:
    return sum(
        s.num_layers * float(s.values[r:].sum()) for r, s in zip(ranks, spectra, strict=True)
    )


@pytest.mark.parametrize("budget", [6, 7, 10, 13, 16, 24, 100])
@pytest.mark.parametrize("seed", range(3))
def test_global_ranks_are_the_best_of_all(seed: int, budget: int) -> None:
    spectra = random_spectra(seed)
    ranks = global_ranks(spectra, budget)
    every = itertools.product(*(range(1, len(s.values) + 1) for s in spectra))
    best = min(lost(spectra, list(r)) for r in every if spent(spectra, list(r)) <= budget)
    assert spent(spectra, ranks) <= budget
    assert lost(spectra, ranks) == pytest.approx(best, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("budget", range(10, 40))
def test_global_ranks_hit_the_budget_from_below_within_one_step(budget: int) -> None:
    spectra = random_spectra(0, layers=(1, 2, 2))
    ranks = global_ranks(spectra, budget)
    left = budget - spent(spectra, ranks)
    growing = [s.step_bytes for s, r in zip(spectra, ranks, strict=True) if r < len(s.values)]
    assert left >= 0
    assert all(left < step for step in growing)


def test_layers_that_share_a_basis_count_each() -> None:
    """A direction stored by two layers costs twice and saves twice, so it ranks by its loss."""
    spectra = [
        Spectrum(values=torch.tensor([9.0, 5.0, 1.0]), bytes_per_channel=2, num_layers=2),
        Spectrum(values=torch.tensor([9.0, 4.0, 2.0]), bytes_per_channel=2, num_layers=1),
    ]
    assert global_ranks(spectra, 6 + 4) == [2, 1]
    assert global_ranks(spectra, 6 + 6) == [2, 2]


@pytest.mark.parametrize("budget", [6, 10, 14, 19, 24, 50])
def test_uniform_ranks_are_the_largest_equal_share_that_fits(budget: int) -> None:
    spectra = random_spectra(0, sizes=(4, 4, 4))
    ranks = uniform_ranks(spectra, budget)
    assert len(set(ranks)) == 1
    assert spent(spectra, ranks) <= budget
    more = [min(rank + 1, 4) for rank in ranks]
    assert more == ranks or spent(spectra, more) > budget


def test_uniform_ranks_are_shares_of_the_full_rank() -> None:
    assert uniform_ranks(random_spectra(0, sizes=(4, 8, 16)), 28) == [2, 4, 8]


@pytest.mark.parametrize("allocate", [global_ranks, uniform_ranks])
def test_less_than_rank_one(allocate) -> None:
    with pytest.raises(PlanError, match="lower compression_ratio"):
        allocate(random_spectra(0), 5)


def test_fixed_ranks() -> None:
    assert fixed_ranks(random_spectra(0), 3) == [3, 3, 3]
    with pytest.raises(PlanError, match=r"d_latent=4 exceeds the full rank 3.*give at most 3"):
        fixed_ranks(random_spectra(0), 4)
