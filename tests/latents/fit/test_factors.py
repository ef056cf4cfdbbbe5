"""What becomes of a module's statistics before it is factorised."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cacheshrink_hybrid.latents.fit.factors import make_unit
from cacheshrink_hybrid.latents.fit.statistics import FirstTokens, LatentStatistics
from tests.moments import random_spd

SIZE, SHARE = 8, 0.25


def _statistics(dearer: float) -> tuple[LatentStatistics, Tensor]:
    """Statistics whose first tokens cost so many times as much, and E[(y - m)(y - m)^T] of these
    about the mean m of the others."""
    metric, moment = random_spd(SIZE, 1, spread=0.5), random_spd(SIZE, 2)
    mean, others = torch.linspace(-1, 1, SIZE).double(), torch.linspace(0, 3, SIZE).double()
    first = FirstTokens(
        share=SHARE,
        mean=mean,
        second_moment=moment + torch.outer(mean, mean),
        metric=dearer * metric,
    )
    statistics = LatentStatistics(
        mean=others,
        covariance=random_spd(SIZE, 3),
        metric=metric,
        num_tokens=100,
        first=first,
    )
    about = moment + torch.outer(mean - others, mean - others)
    return statistics, about


def test_first_tokens_count_as_often_as_they_cost_more() -> None:
    for dearer in (1.0, 40.0):
        statistics, about = _statistics(dearer)
        found = make_unit(statistics, 1, 1e-9).covariance
        due = (1 - SHARE) * statistics.covariance + SHARE * dearer * about
        largest = float((found - due).abs().max() / due.abs().max())
        assert largest < 1e-2


def test_without_first_tokens_the_covariance_is_as_it_was() -> None:
    statistics, _ = _statistics(40.0)
    unit = make_unit(replace(statistics, first=None), 1, 1e-9)
    torch.testing.assert_close(unit.covariance, statistics.covariance)
