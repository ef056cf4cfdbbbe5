"""Keys stored rotated about their mean, in channels of each head's own; values in one latent.

RoPE turns the pair of channels (i, i + Dr/2) of a head by one angle, R_t at slot t. Stored is
R_t (k - mean), pair by pair, so nothing is rebuilt to read it; the mean's part of a score needs no
memory of the token. In a long text the stored pair meets every phase, whatever the key's was, so
its two channels are alike: one scale, and one cost of an error, the mean of the two. Channels that
are not rotated get the best basis of their head. Heads go in step, as in `per_head`, by pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import PlanError
from ...linalg import whitened_basis
from .factors import Bases, KeyShape, LatentFactors, Unit, scaled_factors


def rotated(units: Sequence[Unit]) -> list[Bases]:
    return [Bases.unranked(unit, rotate_factors) for unit in units]


def rotate_factors(unit: Unit) -> LatentFactors:
    """Full-rank factors of one module: D channels of head 0, then of head 1, and so on; in a head
    pairs (real, imaginary) by falling loss, rotated or not."""
    keys = _key_shape(unit)
    J, D = keys.num_heads, keys.head_dim
    covariance, metric = unit.half(0)
    heads = [slice(j * D, (j + 1) * D) for j in range(J)]
    bases = [_head_basis(covariance[h, h], metric[h, h], keys.rotary_dim) for h in heads]
    ups, downs, frequencies = zip(*bases, strict=True)
    values = whitened_basis(*unit.half(1))
    return scaled_factors(
        unit,
        "rotate",
        torch.block_diag(*ups),
        values.up,
        torch.block_diag(*downs, values.down),
        frequencies=torch.cat(frequencies),
        key_heads=torch.arange(J).repeat_interleave(D),
    )


def _head_basis(
    covariance: Tensor, metric: Tensor, rotary_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Up and down (D, D) of one head, in channels that lose what they vary by, and the frequency of
    each pair of them, (D / 2,), -1 where it is not rotated."""
    half, width = rotary_dim // 2, len(metric)
    costs, variances = (
        matrix.diagonal()[:rotary_dim].view(2, half).mean(0).repeat(2)
        for matrix in (metric, covariance)
    )
    up, down, losses = torch.diag(costs.rsqrt()), torch.diag(costs.sqrt()), costs * variances
    if rotary_dim < width:
        still = slice(rotary_dim, None)
        rest = whitened_basis(covariance[still, still], metric[still, still])
        up, down = torch.block_diag(up, rest.up), torch.block_diag(down, rest.down)
        losses = torch.cat([losses, rest.spectrum])
    turned = torch.arange(rotary_dim).view(2, half).T
    pairs = torch.cat([turned, torch.arange(rotary_dim, width).view(-1, 2)])
    frequencies = torch.cat([torch.arange(half), torch.full((len(pairs) - half,), -1)])
    order = losses[pairs].sum(1).argsort(descending=True, stable=True)
    channels = pairs[order].flatten()
    return up[:, channels], down[channels], frequencies[order]


def _key_shape(unit: Unit) -> KeyShape:
    if unit.keys is None:
        raise PlanError("rotated keys need the rotated channels; give the unit its `keys`")
    if unit.keys.cannot_rotate is not None:
        raise PlanError(f"keys cannot be stored rotated: {unit.keys.cannot_rotate}")
    return unit.keys
