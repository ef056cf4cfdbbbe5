"""Random second moments for tests of the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from cacheshrink_hybrid.latents.fit.factors import LatentFactors, Unit


def random_spd(size: int, seed: int, *, spread: float = 3.0) -> Tensor:
    """Symmetric positive definite (size, size), eigenvalues from 10^-spread to 1."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(size, size, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(square).Q
    values = torch.logspace(-spread, 0, size, dtype=torch.float64)
    matrix = (vectors * values) @ vectors.T
    return 0.5 * (matrix + matrix.T)


def random_unit(width: int, seed: int, *, num_layers: int = 1, apart: bool = False) -> Unit:
    """A module with random statistics of y = [k; v], (2 * width,).

    Args:
        apart: no cross terms between keys and values in the metric.
    """
    metric = random_spd(2 * width, 1000 + seed)
    if apart:
        metric = torch.block_diag(metric[:width, :width], metric[width:, width:])
    return Unit(
        covariance=random_spd(2 * width, 2000 + seed),
        metric=metric,
        mean=torch.linspace(-1, 1, 2 * width, dtype=torch.float64),
        num_layers=num_layers,
    )


def restored(factors: LatentFactors, y: Tensor) -> Tensor:
    """What is left of y (N, 2*J*D) after a latent, read as the modules read it."""
    latent = (y - factors.mean) @ factors.encoder.T
    keys = latent[:, : factors.key_up.shape[1]] @ factors.key_up.T
    values = latent[:, latent.shape[1] - factors.value_up.shape[1] :] @ factors.value_up.T
    return torch.cat([keys, values], dim=1) + factors.mean
