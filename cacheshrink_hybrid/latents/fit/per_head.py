"""Keys in a latent of each head's own, values in one latent of the layer.

Rebuilding a head's keys then costs its own channels times D instead of all channels times D.
Heads go in step: channel i of every head has one width, and within a run of one width the channels
of a head lie side by side, so that who reads one head reads whole stretches of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import PlanError
from ...linalg import whitened_basis
from .factors import Bases, LatentFactors, Unit, scaled_factors


def per_head(units: Sequence[Unit]) -> list[Bases]:
    return [Bases.unranked(unit, per_head_factors) for unit in units]


def per_head_factors(unit: Unit) -> LatentFactors:
    """Full-rank factors of one module: D channels of head 0, then of head 1, and so on."""
    if unit.keys is None:
        raise PlanError("per-head keys need the number of heads; give the unit its `keys`")
    J, D = unit.keys.num_heads, unit.keys.head_dim
    covariance, metric = unit.half(0)
    heads = [slice(j * D, (j + 1) * D) for j in range(J)]
    keys = [whitened_basis(covariance[head, head], metric[head, head]) for head in heads]
    values = whitened_basis(*unit.half(1))
    key_up = torch.block_diag(*[basis.up for basis in keys])
    down = torch.block_diag(*[basis.down for basis in keys], values.down)
    heads_of = torch.arange(J).repeat_interleave(D)
    return scaled_factors(unit, "per_head", key_up, values.up, down, key_heads=heads_of)
