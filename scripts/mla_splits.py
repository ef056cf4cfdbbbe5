"""How others split keys into a rotary key and a latent, from the equations of their papers.

transmla   TransMLA (arXiv 2502.07864): within a frequency, or `fold` neighbours taken for the
           first of them, an orthogonal basis of all heads' channels by principal components, the
           first of which rotates; the others no longer do, and are compressed with the values by
           principal components, keys divided by how much longer they are.
mha2mla    MHA2MLA (arXiv 2502.14837): each key head keeps the frequencies of the largest product of
           the lengths of its queries and keys; the rest does not rotate, and its weights are
           compressed with those of the values by singular vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cacheshrink_hybrid.latents.fit.factors import LatentFactors, Unit

METHOD = "decoupled_rope"
NOTHING = 1e-6


def transmla(unit: Unit, *, fold: int, rank: int) -> LatentFactors:
    """Of one module: `fold` must divide its frequencies.

    Args:
        rank: R, channels of the latent beside the rotary key's 2 * frequencies / fold.
    """
    channels = _channels(unit)  # (J, 2, F)
    moment = unit.covariance + torch.outer(unit.mean, unit.mean)
    firsts = range(0, channels.shape[2], fold)
    down = torch.zeros(2, len(firsts), unit.key_width, dtype=torch.float64)
    for pair, first in enumerate(firsts):
        real, imaginary = channels[:, :, first : first + fold].transpose(0, 1).flatten(1)
        both = moment[real][:, real] + moment[imaginary][:, imaginary]
        largest = torch.linalg.eigh(both).eigenvectors[:, -1]
        down[0, pair, real], down[1, pair, imaginary] = largest, largest
    rotary = down.flatten(0, 1)
    still = _left(rotary)
    left = still @ moment @ still.T
    lengths = [left.diagonal()[half].mean().sqrt() for half in _halves(unit)]
    weights = torch.ones(2 * unit.key_width, dtype=torch.float64)
    if lengths[0] > NOTHING * lengths[1]:  # all keys of a single head rotate
        weights[: unit.key_width] = lengths[1] / lengths[0]
    balanced = weights[:, None] * left * weights
    basis = torch.linalg.eigh(balanced).eigenvectors.flip(1)[:, :rank]
    up, latent = basis / weights[:, None], (basis.T * weights) @ still
    return _factors(unit, rotary, up, latent, tuple(firsts))


def mha2mla(
    unit: Unit, weight: Tensor, query_squares: Tensor, *, head_width: int, rank: int
) -> LatentFactors:
    """Of one module.

    Args:
        weight: of keys and values, (2*J*D, E).
        query_squares: E|q_f|^2 of the queries that read each key head, (J, F).
        head_width: rotated channels that each key head keeps.
        rank: R, channels of the latent beside the rotary key's J * head_width.
    """
    channels = _channels(unit)
    moment = unit.covariance + torch.outer(unit.mean, unit.mean)
    key_squares = moment.diagonal()[channels].sum(1)  # (J, F)
    chosen = (query_squares * key_squares).argsort(1, descending=True)[:, : head_width // 2]
    kept = [(int(f), channels[head, :, f]) for head in range(len(chosen)) for f in chosen[head]]
    kept.sort(key=lambda one: one[0])
    down = torch.zeros(2, len(kept), unit.key_width, dtype=torch.float64)
    for pair, (_, places) in enumerate(kept):
        down[0, pair, places[0]] = down[1, pair, places[1]] = 1.0
    rotary = down.flatten(0, 1)
    still = _left(rotary)
    basis = torch.linalg.svd(still @ weight.double(), full_matrices=False).U[:, :rank]
    return _factors(unit, rotary, basis, basis.T @ still, tuple(f for f, _ in kept))


def _channels(unit: Unit) -> Tensor:
    """Channels of keys by head, real or imaginary, and frequency, (J, 2, F)."""
    assert unit.keys is not None
    J, D, width = unit.keys.num_heads, unit.keys.head_dim, unit.keys.rotary_dim
    return torch.arange(J * D).view(J, D)[:, :width].unflatten(1, (2, width // 2))


def _halves(unit: Unit) -> tuple[slice, slice]:
    return slice(unit.key_width), slice(unit.key_width, None)


def _left(rotary: Tensor) -> Tensor:
    """What does not rotate of [k; v], for an orthonormal rotary key (Dr, J*D) of k."""
    width = rotary.shape[1]
    left = torch.eye(2 * width, dtype=torch.float64)
    left[:width, :width] -= rotary.T @ rotary
    return left


def _factors(
    unit: Unit, rotary: Tensor, up: Tensor, down: Tensor, frequencies: tuple[int, ...]
) -> LatentFactors:
    """Of an orthonormal rotary key (Dr, J*D) and a latent: `up` (2*J*D, R), `down` (R, 2*J*D)."""
    keys, values = _halves(unit)
    return LatentFactors(
        method=METHOD,
        encoder=torch.cat([torch.cat([rotary, torch.zeros_like(rotary)], 1), down]),
        key_up=torch.cat([rotary.T, up[keys]], 1),
        value_up=up[values],
        mean=torch.zeros_like(unit.mean),
        loss=0.0,
        expected_error=0.0,
        error_bound=0.0,
        relative_error=0.0,
        rotary_frequencies=frequencies,
    )
