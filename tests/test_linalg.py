"""Square roots, damping, and bases that are optimal in a metric."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.errors import FactorizationError
from cacheshrink_hybrid.linalg import (
    check_positive_semidefinite,
    damped,
    projection_loss,
    square_root,
    whitened_basis,
)
from tests.moments import random_spd
from tests.tolerances import FLOAT64

SEEDS = range(4)
SIZE = 12


def close(actual, expected) -> bool:
    return torch.allclose(torch.as_tensor(actual), torch.as_tensor(expected), FLOAT64, FLOAT64)


@pytest.mark.parametrize("seed", SEEDS)
def test_square_root(seed: int) -> None:
    matrix = random_spd(SIZE, seed)
    root, inverse = square_root(matrix)
    assert close(root @ root, matrix)
    assert close(root, root.T)
    assert close(root @ inverse, torch.eye(SIZE, dtype=torch.float64))


@pytest.mark.parametrize("seed", SEEDS)
def test_basis_is_orthonormal_in_the_metric(seed: int) -> None:
    metric = random_spd(SIZE, seed)
    basis = whitened_basis(random_spd(SIZE, 50 + seed), metric)
    eye = torch.eye(SIZE, dtype=torch.float64)
    assert close(basis.up.T @ metric @ basis.up, eye)
    assert close(basis.down @ basis.up, eye)
    assert close(basis.down, basis.up.T @ metric)
    assert bool((basis.spectrum[:-1] >= basis.spectrum[1:]).all())


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_of_every_rank_is_the_discarded_spectrum(seed: int) -> None:
    """One nested basis serves all ranks."""
    metric, covariance = random_spd(SIZE, seed), random_spd(SIZE, 50 + seed)
    basis = whitened_basis(covariance, metric)
    total = float(basis.spectrum.sum())
    assert close(total, float((metric * covariance).sum()))
    for rank in range(SIZE + 1):
        loss = projection_loss(basis.up[:, :rank], basis.down[:rank], covariance, metric)
        assert abs(loss - float(basis.spectrum[rank:].sum())) < FLOAT64 * total


@pytest.mark.parametrize("seed", SEEDS)
def test_no_other_projection_loses_less(seed: int) -> None:
    metric, covariance = random_spd(SIZE, seed), random_spd(SIZE, 50 + seed)
    basis = whitened_basis(covariance, metric)
    generator = torch.Generator().manual_seed(seed)
    for rank in (1, 4, 9):
        best = projection_loss(basis.up[:, :rank], basis.down[:rank], covariance, metric)
        for _ in range(20):
            noise = torch.randn(SIZE, rank, generator=generator, dtype=torch.float64)
            up = basis.up[:, :rank] + 0.05 * noise
            # The best encoder for this basis.
            down = torch.linalg.solve(up.T @ metric @ up, up.T @ metric)
            assert projection_loss(up, down, covariance, metric) >= best * (1 - FLOAT64)


def test_projection_loss_is_the_mean_loss_of_samples() -> None:
    metric = random_spd(SIZE, 1)
    samples = torch.randn(500, SIZE, dtype=torch.float64)
    covariance = samples.T @ samples / len(samples)
    up = torch.randn(SIZE, 3, dtype=torch.float64)
    down = torch.randn(3, SIZE, dtype=torch.float64)
    errors = samples - samples @ down.T @ up.T
    measured = torch.einsum("ni,ij,nj->", errors, metric, errors) / len(samples)
    assert close(projection_loss(up, down, covariance, metric), float(measured))


def test_signs_are_fixed() -> None:
    """An eigenvector's sign is free; the largest entry in the whitened space is positive."""
    metric = random_spd(SIZE, 3)
    basis = whitened_basis(random_spd(SIZE, 4), metric)
    vectors = square_root(metric)[0] @ basis.up
    pivots = vectors.gather(0, vectors.abs().argmax(0)[None])
    assert bool((pivots > 0).all())


def test_damping() -> None:
    matrix = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    expected = torch.diag(torch.tensor([4.4, 1.4, 0.4], dtype=torch.float64))
    assert close(damped(matrix, 0.1), expected)
    assert bool((damped(torch.zeros(2, 2, dtype=torch.float64), 0.1).diagonal() > 0).all())


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.zeros(2, 3), r"shape \(2, 3\); a square matrix"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "non-finite entries; check the"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "is not symmetric"),
        (torch.tensor([[1.0, 0.0], [0.0, -1.0]]), "negative eigenvalue -1"),
    ],
    ids=["not-square", "nan", "not-symmetric", "negative"],
)
def test_what_is_no_second_moment(matrix: torch.Tensor, message: str) -> None:
    with pytest.raises(FactorizationError, match=message):
        check_positive_semidefinite(matrix, "the covariance")
