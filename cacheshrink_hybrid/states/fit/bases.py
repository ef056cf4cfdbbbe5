"""Bases of recurrent states: which r of N directions to keep, and what is lost with the others.

A state that is stored as S' = S L and read with C' = R^T C gives y' = S L R^T C instead of S C.
With u = S^T g and independent u and C, the expected loss of the error is

    tr(Sig_C E^T Sig_U E),   E = I - L R^T,   Sig_C = E[C C^T],   Sig_U = E[u u^T].

`oblique` is its minimum over all pairs of rank r, `orthonormal` and `select` are what a delta rule
and a decay per element allow. Every basis here is nested: the first r columns are the basis of
rank r, and `loss[r]` is its loss.

Reference: empirical balanced truncation; Moore, Principal component analysis in linear systems,
IEEE TAC 26 (1981).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...linalg import check_positive_semidefinite, square_root

RIDGE = 1e-6
"""Share of its mean eigenvalue that is added to a moment before it is inverted."""


@dataclass(frozen=True, slots=True)
class StateBasis:
    """Nested bases of one group's states.

    Attributes:
        write: L, (N, N); its first r columns are what is stored.
        read: R for each rank: (N, N) if one matrix serves all ranks by its first columns, else
            (N + 1, N, N) with the matrix of rank r at position r.
        loss: expected loss at rank 0..N, (N + 1,), not increasing.
        channels: for a selection, the source's channels in the order in which they are kept.
    """

    write: Tensor
    read: Tensor
    loss: Tensor
    channels: tuple[int, ...] | None = None

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """(L, R) of one rank, (N, r) each."""
        read = self.read if self.read.ndim == 2 else self.read[rank]
        return self.write[:, :rank], read[:, :rank]


@dataclass(frozen=True, slots=True)
class GroupMoments:
    """Second moments of what one group's states meet, (N, N) each.

    Attributes:
        reads: Sig_C.
        writes: of what is written, E[B B^T] or E[k k^T].
        costs: Sig_U.
    """

    reads: Tensor
    writes: Tensor
    costs: Tensor


def oblique(group: GroupMoments) -> StateBasis:
    return oblique_basis(group.reads, group.costs)


def orthonormal(group: GroupMoments) -> StateBasis:
    """Directions of what is written and of what reads, one weighed as the other."""
    moment = group.writes / group.writes.trace() + group.reads / group.reads.trace()
    return orthonormal_basis(moment, group.reads, group.costs)


def selected(group: GroupMoments) -> StateBasis:
    return selected_channels(group.reads, group.costs)


def pruned(group: GroupMoments) -> StateBasis:
    return selected_channels(group.reads, group.costs, refit=False)


def state_loss(reads: Tensor, costs: Tensor, write: Tensor, read: Tensor) -> float:
    """tr(Sig_C E^T Sig_U E) with E = I - write @ read^T."""
    error = torch.eye(len(reads), dtype=reads.dtype) - write @ read.T
    return float(torch.sum((costs @ error) * (error @ reads)))


def oblique_basis(reads: Tensor, costs: Tensor) -> StateBasis:
    """The best pairs of every rank, by an SVD of Sig_U^1/2 Sig_C^1/2.

    Args:
        reads: Sig_C, (N, N).
        costs: Sig_U, (N, N).

    Returns:
        Bases with columns of unit length in L; at full rank L R^T = I.
    """
    reads, costs = _damped(reads, "reads"), _damped(costs, "costs")
    cost_root, inverse_cost_root = square_root(costs)
    read_root, inverse_read_root = square_root(reads)
    left, values, right = torch.linalg.svd(cost_root @ read_root)
    left, right = _signed(left, right.T)
    roots = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    write = inverse_cost_root @ left * roots
    read = inverse_read_root @ right * roots
    length = write.norm(dim=0)
    return StateBasis(write / length, read * length, _tails(values.square()))


def orthonormal_basis(moment: Tensor, reads: Tensor, costs: Tensor) -> StateBasis:
    """Principal directions of `moment`, kept orthonormal so that erasing stays a contraction.

    Args:
        moment: what the directions are taken from, (N, N): keys and queries together.
        reads: Sig_C of queries, (N, N).
        costs: Sig_U, (N, N).
    """
    moment = check_positive_semidefinite(moment, "the second moment of keys and queries")
    _, vectors = torch.linalg.eigh(moment)
    basis, _ = _signed(vectors.flip(-1), vectors.flip(-1))
    return StateBasis(basis, basis, _losses(reads, costs, basis, basis))


def selected_channels(reads: Tensor, costs: Tensor, *, refit: bool = True) -> StateBasis:
    """Source channels, one after the other.

    With `refit`, each is the one after which the best reading of all kept channels loses least, and
    what reads them is that best reading. Without, channels are ranked by the product of how much
    they are written and read, and read as before (axis-aligned pruning, as in GHOST, arXiv
    2602.11408).

    Args:
        reads: Sig_C, (N, N).
        costs: Sig_U, (N, N).
    """
    N = len(reads)
    eye = torch.eye(N, dtype=torch.float64)
    if not refit:
        order = torch.argsort(reads.diagonal() * costs.diagonal(), descending=True).tolist()
        write = eye[:, order]
        return StateBasis(write, write, _losses(reads, costs, write, write), tuple(order))
    damped = _damped(costs, "costs")
    residual, order = damped.clone(), []
    for _ in range(N):
        # What column j takes away of tr(Sig_C residual), if it is eliminated next.
        gain = ((residual @ reads) * residual).sum(1) / residual.diagonal().clamp_min(1e-300)
        gain[order] = -torch.inf
        best = int(torch.argmax(gain))
        column = residual[:, best]
        residual = residual - torch.outer(column, column) / column[best]
        order.append(best)
    read = torch.zeros(N + 1, N, N, dtype=torch.float64)
    loss = torch.zeros(N + 1, dtype=torch.float64)
    loss[0] = torch.sum(reads * costs)
    for rank in range(1, N + 1):
        kept = order[:rank]
        fitted = torch.linalg.solve(damped[kept][:, kept], damped[kept])
        read[rank, :, :rank] = fitted.T
        loss[rank] = state_loss(reads, costs, eye[:, kept], fitted.T)
    return StateBasis(eye[:, order], read, _descending(loss), tuple(order))


def _losses(reads: Tensor, costs: Tensor, write: Tensor, read: Tensor) -> Tensor:
    N = len(reads)
    values = [state_loss(reads, costs, write[:, :r], read[:, :r]) for r in range(N + 1)]
    return _descending(torch.tensor(values, dtype=torch.float64))


def _tails(values: Tensor) -> Tensor:
    """Sums of what is left out at rank 0..N."""
    sums = torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])
    return sums


def _descending(loss: Tensor) -> Tensor:
    """`loss` as an upper bound that does not increase with the rank."""
    return torch.cummax(loss.flip(0), dim=0).values.flip(0).clamp_min(0.0)


def _damped(moment: Tensor, name: str) -> Tensor:
    moment = check_positive_semidefinite(moment, f"the second moment of {name}")
    mean = moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    return moment + RIDGE * mean * torch.eye(len(moment), dtype=torch.float64)


def _signed(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Fix the arbitrary signs of singular vectors, so that equal inputs give equal checkpoints."""
    pivot = left.abs().argmax(dim=0)
    signs = torch.where(left.gather(0, pivot[None]) < 0, -1.0, 1.0)
    return left * signs, right * signs
