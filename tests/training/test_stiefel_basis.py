"""Bases as points on the Stiefel manifold: exact maps, orthonormal after every step."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.errors import FactorizationError
from cacheshrink_hybrid.training.optimizer import RiemannianAdamW
from cacheshrink_hybrid.training.stiefel_basis import (
    StiefelBasis,
    from_factor,
    metric_roots,
    orthonormality_error,
    to_factor,
)

EXACT = 1e-10


def random_metric(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -5, n, dtype=torch.float64)
    x = torch.randn(n, n, generator=generator, dtype=torch.float64) * spread
    return x @ x.T


def random_up(*shape: int) -> torch.Tensor:
    """Channels whose scales span two orders of magnitude."""
    return torch.randn(*shape, dtype=torch.float64) * torch.logspace(0, -2, shape[-1]).double()


@pytest.mark.parametrize("shape", [(12, 5), (12, 12), (12, 1), (3, 8, 4)], ids=str)
def test_maps_are_inverse(shape: tuple[int, ...]) -> None:
    root, inverse = metric_roots(random_metric(shape[-2]), 1e-4)
    up = random_up(*shape)
    factor, scales = to_factor(up, root)
    assert orthonormality_error(factor) < EXACT
    again = from_factor(factor, inverse, scales)
    assert (again - up).abs().max() < EXACT * up.abs().max()
    factor_again, scales_again = to_factor(again, root)
    assert (factor_again - factor).abs().max() < EXACT
    assert (scales_again - scales).abs().max() < EXACT


def test_exported_basis_is_orthonormal_in_the_metric() -> None:
    """S^-1 U^T M U S^-1 = I for a point that training has moved."""
    metric = random_metric(16)
    root, inverse = metric_roots(metric, 1e-4)
    basis = StiefelBasis(random_up(16, 6), root, inverse, dtype=torch.float64)
    optimizer = RiemannianAdamW([{"params": [basis.factor], "lr": 0.3, "weight_decay": 0.0}])
    target = torch.randn(16, 6, dtype=torch.float64)
    start = basis.up().detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        (basis.up() - target).square().sum().backward()
        optimizer.step()
        assert orthonormality_error(basis.factor) < EXACT
    up = basis.up().detach()
    assert (up - start).abs().max() > 0.1 * start.abs().max()
    scaled = torch.linalg.solve(basis.scales, up.T).T
    gram = scaled.T @ (root @ root) @ scaled
    assert (gram - torch.eye(6, dtype=torch.float64)).abs().max() < EXACT


def test_scales_of_diagonal_factors_are_kept() -> None:
    """Where M^1/2 U = Z diag(s), S is diag(s) and Q is Z."""
    root, inverse = metric_roots(random_metric(10), 1e-4)
    z = torch.linalg.qr(torch.randn(10, 4, dtype=torch.float64))[0]
    s = torch.tensor([3.0, 1.0, 0.2, 0.01], dtype=torch.float64)
    factor, scales = to_factor(inverse @ (z * s), root)
    torch.testing.assert_close(scales, torch.diag(s), atol=EXACT, rtol=0)
    torch.testing.assert_close(factor, z, atol=1e-8, rtol=0)


def test_thousand_steps_in_single_precision() -> None:
    root, inverse = metric_roots(random_metric(32), 1e-4)
    basis = StiefelBasis(random_up(32, 12).float(), root, inverse)
    optimizer = RiemannianAdamW([{"params": [basis.factor], "lr": 0.05, "weight_decay": 0.0}])
    target = torch.randn(32, 12)
    for _ in range(1000):
        optimizer.zero_grad()
        (basis.up() - target).square().sum().backward()
        optimizer.step()
    assert orthonormality_error(basis.factor) < 1e-6


def test_gradient() -> None:
    root, inverse = metric_roots(random_metric(6), 1e-2)
    factor, scales = to_factor(random_up(6, 3), root)
    factor.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: from_factor(q, inverse, scales), factor)


def test_unconstrained_basis_is_the_matrix_itself() -> None:
    up = random_up(8, 3).float()
    root, inverse = metric_roots(random_metric(8), 1e-4)
    basis = StiefelBasis(up, root, inverse, constrained=False)
    assert torch.equal(basis.up(), up)
    assert basis.orthonormality_error() is None


def test_zero_channels_still_give_a_point_on_the_manifold() -> None:
    root, inverse = metric_roots(random_metric(8), 1e-4)
    up = random_up(8, 3)
    up[:, 1] = 0
    factor, scales = to_factor(up, root)
    assert orthonormality_error(factor) < EXACT
    assert (from_factor(factor, inverse, scales) - up).abs().max() < EXACT


def test_bad_metric() -> None:
    with pytest.raises(FactorizationError, match="non-finite"):
        metric_roots(torch.full((3, 3), torch.nan), 1e-4)
