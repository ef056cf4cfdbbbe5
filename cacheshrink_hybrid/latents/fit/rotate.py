"""Keys stored after rotation, in a basis that commutes with it: nothing is rebuilt to read them.

RoPE turns the pair of channels (i, i + Dr/2) of every head by one angle, so as complex numbers the
J heads' pairs of one frequency form a vector z that is multiplied by e^(i angle). Any complex
matrix that mixes heads within a frequency commutes with that. Per frequency the best rank-r pair is
that of `whitened_basis`, with the moments averaged over all angles: Hermitian matrices (J, J).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import PlanError
from ...linalg import whitened_basis
from .factors import Bases, KeyShape, LatentFactors, Unit, scaled_factors


def rotated(units: Sequence[Unit]) -> list[Bases]:
    return [Bases.unranked(rotated_unit(unit), rotate_factors) for unit in units]


def rotated_unit(unit: Unit) -> Unit:
    """The unit as it looks after rotation by every angle: keys of different frequencies, and keys
    and values, are uncorrelated, and rotated channels have mean zero."""
    keys = _key_shape(unit)
    width = unit.width
    rotated = _pair_channels(keys).flatten()
    mean = unit.mean.clone()
    mean[rotated] = 0.0
    second_moment = unit.covariance + torch.outer(unit.mean, unit.mean)
    moments = []
    for matrix, of_rotated in ((unit.covariance, second_moment), (unit.metric, unit.metric)):
        averaged = torch.zeros_like(matrix)
        still = _still_channels(keys)
        averaged[still[:, None], still] = matrix[still[:, None], still]
        averaged[width:, width:] = matrix[width:, width:]
        for pairs in _pair_channels(keys):
            block = _real(_complex(of_rotated, pairs))
            channels = pairs.T.flatten()  # real parts of all heads, then imaginary ones
            averaged[channels[:, None], channels] = block
        moments.append(averaged)
    return replace(unit, covariance=moments[0], metric=moments[1], mean=mean)


def rotate_factors(unit: Unit) -> LatentFactors:
    """Full-rank factors of `rotated_unit(unit)`: key channels in pairs (real, imaginary).

    `key_up` and `encoder` commute with the rotation of all pairs of one frequency, so they apply to
    rotated keys and rotated channels as they do to keys and channels.
    """
    keys = _key_shape(unit)
    width = unit.width
    ups, downs, frequencies = [], [], []
    for frequency, pairs in enumerate(_pair_channels(keys)):
        # A complex covariance adds both parts' variances; a metric weighs each part alike.
        complex_up, complex_down = _hermitian_basis(
            _complex(unit.covariance, pairs), _complex(unit.metric, pairs) / 2
        )
        channels = pairs.T.flatten()
        rank = complex_up.shape[1]
        up = torch.zeros(width, 2 * rank, dtype=torch.float64)
        down = torch.zeros(2 * rank, width, dtype=torch.float64)
        # (real | imaginary) blocks of a complex matrix, then channels pair by pair
        up[channels] = _interleaved(_real(complex_up, half=False).T).T
        down[:, channels] = _interleaved(_real(complex_down, half=False))
        ups.append(up)
        downs.append(down)
        frequencies += [frequency] * rank
    still = _still_channels(keys)
    if len(still):
        at = (still[:, None], still)
        basis = whitened_basis(unit.covariance[at], unit.metric[at])
        up = torch.zeros(width, len(still), dtype=torch.float64)
        down = torch.zeros(len(still), width, dtype=torch.float64)
        up[still], down[:, still] = basis.up, basis.down
        ups.append(up)
        downs.append(down)
        frequencies += [-1] * (len(still) // 2)
    values = whitened_basis(*unit.half(1))
    factors = scaled_factors(
        unit,
        "rotate",
        torch.cat(ups, dim=1),
        values.up,
        torch.block_diag(torch.cat(downs), values.down),
    )
    return replace(factors, frequencies=torch.tensor(frequencies))


def _key_shape(unit: Unit) -> KeyShape:
    if unit.keys is None:
        raise PlanError("rotated keys need the rotated channels; give the unit its `keys`")
    if unit.keys.cannot_rotate is not None:
        raise PlanError(f"keys cannot be stored rotated: {unit.keys.cannot_rotate}")
    return unit.keys


def _pair_channels(keys: KeyShape) -> Tensor:
    """Channels of each frequency's pairs, (Dr/2, J, 2): real and imaginary part of every head."""
    half = keys.rotary_dim // 2
    head = torch.arange(keys.num_heads)[None, :, None] * keys.head_dim
    part = torch.tensor([0, half])[None, None]
    return torch.arange(half)[:, None, None] + head + part


def _still_channels(keys: KeyShape) -> Tensor:
    """Key channels that are not rotated."""
    channels = torch.arange(keys.num_heads * keys.head_dim).view(keys.num_heads, keys.head_dim)
    return channels[:, keys.rotary_dim :].flatten()


def _complex(matrix: Tensor, pairs: Tensor) -> Tensor:
    """The part of a real form that commutes with rotation, (J, J): with blocks [[A, B], [C, D]]
    over (real, imaginary) parts, A + D + i (C - B)."""
    real, imaginary = pairs.unbind(-1)
    a, b = matrix[real[:, None], real], matrix[real[:, None], imaginary]
    c, d = matrix[imaginary[:, None], real], matrix[imaginary[:, None], imaginary]
    return torch.complex(a + d, c - b)


def _real(matrix: Tensor, *, half: bool = True) -> Tensor:
    """A complex (m, n) as real (2m, 2n) acting on (real parts | imaginary parts); halved, the
    average over angles of the form that `_complex` came from."""
    blocks = torch.cat(
        [
            torch.cat([matrix.real, -matrix.imag], dim=1),
            torch.cat([matrix.imag, matrix.real], dim=1),
        ]
    )
    return blocks / 2 if half else blocks


def _interleaved(rows: Tensor) -> Tensor:
    """Rows (2r, n) in the order real 0, imaginary 0, real 1, ..."""
    return rows.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


def _hermitian_basis(covariance: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """`whitened_basis` of Hermitian (J, J): U and its inverse E, directions by falling loss."""
    values, vectors = torch.linalg.eigh(metric)
    roots = values.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    root = (vectors * roots) @ vectors.mH
    inverse_root = (vectors / roots) @ vectors.mH
    product = root @ covariance @ root
    _, directions = torch.linalg.eigh(0.5 * (product + product.mH))
    directions = directions.flip(-1)
    # A complex eigenvector's phase is arbitrary; fix it so that equal inputs give equal results.
    pivot = directions.gather(0, directions.abs().argmax(dim=0)[None])
    directions = directions * (pivot.abs() / pivot)
    return inverse_root @ directions, directions.mH @ root
