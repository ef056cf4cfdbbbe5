"""A basis U whose channels stay orthonormal in a metric, as a point on the Stiefel manifold.

With the metric's root, M^1/2 U = Q S (polar decomposition): Q has orthonormal columns, S is
symmetric and holds the channels' scales. Q is trained, S stays: U = M^-1/2 Q S, so that
S^-1 U^T M U S^-1 = I throughout. Lengths on the manifold are then errors in the metric.
"""

from __future__ import annotations

import geoopt
import torch
from torch import Tensor, nn

from ..linalg import check_positive_semidefinite, damped, square_root


def metric_roots(metric: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """M^1/2 and M^-1/2 of a damped metric (n, n) scaled to a mean eigenvalue of one.

    The scale of a metric changes neither the set of its orthonormal bases nor their directions.

    Raises:
        FactorizationError: if it is not finite and positive semi-definite.
    """
    metric = check_positive_semidefinite(metric, "the metric")
    mean = metric.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return square_root(damped(metric / mean, damping))


def to_factor(up: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Q (..., n, r) with orthonormal columns and S (..., r, r) with M^1/2 U = Q S.

    Args:
        up: U, (..., n, r), r <= n.
        root: M^1/2, (..., n, n).
    """
    left, values, right = torch.linalg.svd(root @ up, full_matrices=False)
    return left @ right, right.mT @ (values[..., None] * right)


def from_factor(factor: Tensor, inverse_root: Tensor, scales: Tensor) -> Tensor:
    """U = M^-1/2 Q S, (..., n, r)."""
    return inverse_root @ factor @ scales


def orthonormality_error(factor: Tensor) -> float:
    """max |Q^T Q - I|, which is max |S^-1 U^T M U S^-1 - I|, computed in float64."""
    factor = factor.detach().double()
    gram = factor.mT @ factor
    return float(
        (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs().max()
    )


class StiefelBasis(nn.Module):
    """A trainable basis, (..., n, r), of one or (leading dimensions) several metrics.

    Args:
        up: U at the start, (..., n, r).
        root, inverse_root: M^1/2 and M^-1/2, (..., n, n), float64.
        dtype: precision to train in.
        constrained: False trains U itself instead, without the manifold.
    """

    def __init__(
        self,
        up: Tensor,
        root: Tensor,
        inverse_root: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        constrained: bool = True,
    ) -> None:
        super().__init__()
        self.constrained = constrained
        self.factor: nn.Parameter
        if not constrained:
            self.factor = nn.Parameter(up.detach().to(dtype, copy=True).contiguous())
            return
        exact = up.detach().to("cpu", torch.float64)
        factor, scales = to_factor(exact, root)
        # QR retraction (the Euclidean metric's) makes columns orthonormal anew in every step.
        self.factor = geoopt.ManifoldParameter(
            factor.to(up.device, dtype).contiguous(), manifold=geoopt.Stiefel(canonical=False)
        )
        self.register_buffer("inverse_root", inverse_root.to(up.device, dtype), persistent=True)
        self.register_buffer("scales", scales.to(up.device, dtype), persistent=True)

    def up(self) -> Tensor:
        """U, (..., n, r), differentiable."""
        if not self.constrained:
            return self.factor
        return from_factor(self.factor, self.inverse_root, self.scales)

    def orthonormality_error(self) -> float | None:
        """See the function of this name; None for an unconstrained basis."""
        return orthonormality_error(self.factor) if self.constrained else None
