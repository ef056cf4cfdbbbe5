"""Ranks for all layers under one byte budget: take the directions that carry most loss per byte."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Loss carried by each direction of one basis, and what storing a direction costs.

    Attributes:
        values: expected loss per direction and layer, descending, (n,).
        bytes_per_channel: bytes of one stored channel of one token in one layer.
        num_layers: layers that store a latent in this basis.
    """

    values: Tensor
    bytes_per_channel: int
    num_layers: int = 1

    @property
    def step_bytes(self) -> int:
        """Bytes per token of one more rank."""
        return self.bytes_per_channel * self.num_layers


def global_ranks(spectra: Sequence[Spectrum], budget_bytes: float) -> list[int]:
    """Ranks, at least 1 each, that keep the most loss within `budget_bytes` per token.

    Greedy by loss per byte, which is optimal here up to the last step: every spectrum descends, so
    each prefix is the best set of its size.

    Raises:
        PlanError: if rank 1 everywhere is over the budget already.
    """
    ranks = [1] * len(spectra)
    spent = sum(spectrum.step_bytes for spectrum in spectra)
    if spent > budget_bytes:
        raise PlanError(
            f"the budget of {budget_bytes:.1f} bytes per token is below the {spent} bytes that "
            "one channel per latent takes; lower compression_ratio, or raise budget_bytes"
        )
    values = [spectrum.values.tolist() for spectrum in spectra]
    heap = [_candidate(spectra, values, i, 1) for i in range(len(spectra)) if len(values[i]) > 1]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        if spent + spectra[i].step_bytes > budget_bytes:
            continue  # a cheaper spectrum may still fit
        spent += spectra[i].step_bytes
        ranks[i] += 1
        if ranks[i] < len(values[i]):
            heapq.heappush(heap, _candidate(spectra, values, i, ranks[i]))
    return ranks


def _candidate(spectra, values, i: int, rank: int) -> tuple[float, int]:
    return (-values[i][rank] / spectra[i].bytes_per_channel, i)


def uniform_ranks(spectra: Sequence[Spectrum], budget_bytes: float) -> list[int]:
    """The same share of every spectrum's full rank, the largest that fits, at least 1 each."""
    full = sum(len(spectrum.values) * spectrum.step_bytes for spectrum in spectra)
    share = min(1.0, budget_bytes / full)
    ranks = [max(1, int(share * len(spectrum.values) + 1e-9)) for spectrum in spectra]
    spent = sum(r * s.step_bytes for r, s in zip(ranks, spectra, strict=True))
    if spent > budget_bytes:
        raise PlanError(
            f"uniform ranks need at least {spent} bytes per token, the budget is "
            f"{budget_bytes:.1f}; lower compression_ratio, or raise budget_bytes"
        )
    return ranks


def fixed_ranks(spectra: Sequence[Spectrum], rank: int) -> list[int]:
    """`rank` everywhere.

    Raises:
        PlanError: if a basis has fewer directions.
    """
    smallest = min(len(spectrum.values) for spectrum in spectra)
    if rank > smallest:
        raise PlanError(
            f"d_latent={rank} exceeds the full rank {smallest} of this model's latents; "
            f"give at most {smallest}"
        )
    return [rank] * len(spectra)
