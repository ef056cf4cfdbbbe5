"""What calibration leaves behind: second moments per attention module, however long the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Moments:
    """Streaming mean and covariance of vectors, in float64 on the CPU.

    Args:
        width: n, the length of the vectors.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._outer = torch.zeros(width, width, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Count vectors (..., n)."""
        rows = vectors.detach().reshape(-1, vectors.shape[-1]).to("cpu", torch.float64)
        self.count += rows.shape[0]
        self._sum += rows.sum(0)
        self._outer += rows.T @ rows

    @property
    def mean(self) -> Tensor:
        return self._sum / self.count

    @property
    def second_moment(self) -> Tensor:
        """E[y y^T], (n, n)."""
        return self._outer / self.count

    @property
    def covariance(self) -> Tensor:
        return self.second_moment - torch.outer(self.mean, self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentStatistics:
    """Second moments of y = [k; v] of one attention module, and what an error in y costs.

    Keys are taken where the projection gives them: before norm, multiplier and rotation.

    Attributes:
        mean: E[y], (2*J*D,).
        covariance: E[(y - mean)(y - mean)^T], (2*J*D, 2*J*D).
        metric: M, so that an error e costs e^T M e, (2*J*D, 2*J*D).
        num_tokens: calibration tokens that were counted; 0 if none were needed.
    """

    mean: Tensor
    covariance: Tensor
    metric: Tensor
    num_tokens: int
