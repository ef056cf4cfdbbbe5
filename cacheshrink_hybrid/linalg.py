"""Small dense linear algebra in float64: symmetric square roots, whitened spectra, error norms.

All matrices here are n x n second moments with n at most a few thousand; float64 on the CPU is the
right tool, and it makes every result reproducible bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import FactorizationError

SYMMETRY_TOLERANCE = 1e-8
NEGATIVE_TOLERANCE = 1e-8


def check_positive_semidefinite(matrix: Tensor, name: str) -> Tensor:
    """Return `matrix` (n, n) as a symmetric float64 tensor, or raise.

    Raises:
        FactorizationError: if it is not square, not finite, not symmetric, or has an eigenvalue
            below -1e-8 times the largest.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise FactorizationError(f"{name} has shape {tuple(matrix.shape)}; a square matrix is due")
    matrix = matrix.detach().to(device="cpu", dtype=torch.float64)
    if not torch.isfinite(matrix).all():
        raise FactorizationError(
            f"{name} has non-finite entries; check the calibration text and the model's dtype "
            "(convert in float32 if float16 overflows)"
        )
    scale = matrix.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    if (matrix - matrix.T).abs().max() > SYMMETRY_TOLERANCE * scale:
        raise FactorizationError(f"{name} is not symmetric; a second moment is due")
    matrix = 0.5 * (matrix + matrix.T)
    smallest = torch.linalg.eigvalsh(matrix)[0]
    if smallest < -NEGATIVE_TOLERANCE * matrix.shape[0] * scale:
        raise FactorizationError(
            f"{name} has the negative eigenvalue {smallest:.3g}; a second moment has none"
        )
    return matrix


def square_root(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of an SPD matrix (n, n) and its inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    roots = values.clamp_min(0.0).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def damped(metric: Tensor, damping: float) -> Tensor:
    """`metric` (n, n) plus `damping` times its largest eigenvalue on the diagonal."""
    largest = torch.linalg.eigvalsh(metric)[-1].clamp_min(torch.finfo(torch.float64).tiny)
    return metric + damping * largest * torch.eye(metric.shape[0], dtype=metric.dtype)


@dataclass(frozen=True, slots=True)
class WhitenedBasis:
    """All directions of a covariance, sorted by how much of the metric's loss each one carries.

    The best rank-r pair is `up[:, :r]`, `down[:r]`, for every r; its loss is `spectrum[r:].sum()`.

    Attributes:
        up: U, (n, n), with U^T M U = I.
        down: E = U^T M, (n, n), the exact inverse of U.
        spectrum: eigenvalues of M^1/2 C M^1/2, (n,), descending, not negative.
    """

    up: Tensor
    down: Tensor
    spectrum: Tensor


def whitened_basis(covariance: Tensor, metric: Tensor) -> WhitenedBasis:
    """Optimal nested bases of `covariance` in the norm of `metric`.

    Minimises E (y - UEy)^T M (y - UEy) over rank-r pairs (U, E), for all r at once: with the
    eigenvectors Z of M^1/2 C M^1/2, U = M^-1/2 Z_r and E = Z_r^T M^1/2 (Eckart-Young in the
    whitened space).

    Args:
        covariance: C, (n, n), symmetric positive semi-definite, float64.
        metric: M, (n, n), symmetric positive definite, float64.
    """
    root, inverse_root = square_root(metric)
    product = root @ covariance @ root
    values, vectors = torch.linalg.eigh(0.5 * (product + product.T))
    vectors = vectors.flip(-1)
    # An eigenvector's sign is arbitrary; fix it so that equal inputs give equal checkpoints.
    pivot = vectors.abs().argmax(dim=0)
    vectors = vectors * torch.where(vectors.gather(0, pivot[None]) < 0, -1.0, 1.0)
    return WhitenedBasis(
        up=inverse_root @ vectors,
        down=vectors.T @ root,
        spectrum=values.flip(0).clamp_min(0.0),
    )


def projection_loss(up: Tensor, down: Tensor, covariance: Tensor, metric: Tensor) -> float:
    """Expected loss E e^T M e of the error e = (I - up @ down) y, with C the covariance of y."""
    residual = torch.eye(covariance.shape[0], dtype=covariance.dtype) - up @ down
    return float(torch.sum((residual @ covariance) * (metric @ residual)))
