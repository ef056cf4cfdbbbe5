"""Bases of states: optimal, nested, exact where the data are of low rank."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.errors import FactorizationError
from cacheshrink_hybrid.states.fit.bases import (
    oblique_basis,
    orthonormal_basis,
    selected_channels,
    state_loss,
)
from cacheshrink_hybrid.states.scans.ssd import ssd_scan
from tests.moments import random_spd
from tests.tolerances import FLOAT64

N = 12


def moments() -> tuple[torch.Tensor, torch.Tensor]:
    """Second moments of what reads and of what is read, mixed differently."""
    return random_spd(N, seed=1), random_spd(N, seed=2)


def bases() -> dict:
    reads, costs = moments()
    return {
        "oblique": oblique_basis(reads, costs),
        "principal of reads": orthonormal_basis(reads, reads, costs),
        "principal of costs": orthonormal_basis(costs, reads, costs),
        "principal of both": orthonormal_basis(reads + costs, reads, costs),
        "select": selected_channels(reads, costs),
        "prune": selected_channels(reads, costs, refit=False),
    }


@pytest.mark.parametrize("name", bases())
def test_reported_loss_is_the_loss_of_the_pair(name: str) -> None:
    reads, costs = moments()
    basis = bases()[name]
    scale = float(basis.loss[0])
    for rank in range(1, N + 1):
        loss = state_loss(reads, costs, *basis.pair(rank))
        assert loss <= float(basis.loss[rank]) + 1e-4 * scale  # the ridge, and never too good
    assert float(basis.loss[0]) >= float(torch.sum(reads * costs)) * (1 - 1e-4)
    assert torch.all(basis.loss[:-1] >= basis.loss[1:])
    assert abs(float(basis.loss[N])) < 1e-6 * scale


@pytest.mark.parametrize("name", [name for name in bases() if name != "oblique"])
def test_nothing_is_better_than_the_oblique_basis(name: str) -> None:
    reads, costs = moments()
    best, other = bases()["oblique"], bases()[name]
    for rank in range(1, N):
        loss = state_loss(reads, costs, *best.pair(rank))
        assert loss <= state_loss(reads, costs, *other.pair(rank)) * (1 + 1e-4)


def test_random_pairs_are_not_better_either() -> None:
    reads, costs = moments()
    basis = oblique_basis(reads, costs)
    write, read = basis.pair(5)
    best = state_loss(reads, costs, write, read)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        step = 0.05 * torch.randn(2, N, 5, dtype=torch.float64, generator=generator)
        nearby = state_loss(reads, costs, write + step[0], read + step[1] * read.norm() / N)
        assert nearby > best


def test_full_rank_is_the_identity() -> None:
    write, read = oblique_basis(*moments()).pair(N)
    error = (write @ read.T - torch.eye(N, dtype=torch.float64)).abs().max()
    assert float(error) < 1e4 * FLOAT64


def test_refitting_is_never_worse_than_pruning() -> None:
    reads, costs = moments()
    select = selected_channels(reads, costs)
    for rank in range(1, N):
        kept = list(select.channels[:rank])
        eye = torch.eye(N, dtype=torch.float64)[:, kept]
        fitted = state_loss(reads, costs, *select.pair(rank))
        assert fitted <= state_loss(reads, costs, eye, eye) * (1 + 1e-6)


def test_states_of_low_rank_are_kept_exactly() -> None:
    """B in a 4-dimensional subspace: 4 directions give the output of all 12."""
    torch.manual_seed(0)
    B, T, M, P, rank = 1, 40, 2, 3, 4
    subspace = torch.randn(rank, N)
    x, dt = torch.randn(B, T, M, P), torch.rand(B, T, M)
    write, read = torch.randn(B, T, 1, rank) @ subspace, torch.randn(B, T, 1, N)
    A = -torch.rand(M)
    expected, _ = ssd_scan(None, x, dt, A, write, read)
    rows = write[0, :, 0].double()
    basis = oblique_basis(read[0, :, 0].double().T @ read[0, :, 0].double(), rows.T @ rows)
    L, R = (v.float() for v in basis.pair(rank))
    actual, _ = ssd_scan(None, x, dt, A, write @ L, read @ R)
    assert float((actual - expected).norm() / expected.norm()) < 1e-4
    L, R = (v.float() for v in basis.pair(rank - 1))
    worse, _ = ssd_scan(None, x, dt, A, write @ L, read @ R)
    assert float((worse - expected).norm() / expected.norm()) > 1e-2


def test_moments_that_are_none() -> None:
    with pytest.raises(FactorizationError, match="not symmetric"):
        oblique_basis(torch.triu(torch.ones(3, 3, dtype=torch.float64)), torch.eye(3).double())
