"""Keys in a latent of each head's own, values in one latent of the layer.

Rebuilding a head's keys then costs its own channels times D instead of all channels times D.
Heads go in step: channel i of every head has one width, so that heads lie side by side in a row.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import PlanError
from ..linalg import whitened_basis
from .latent_kv import LatentFactors, Unit, scaled_factors


def per_head_factors(unit: Unit) -> LatentFactors:
    """Full-rank factors of one module; channel i * J + j of the keys belongs to head j."""
    if unit.keys is None:
        raise PlanError("per-head keys need the number of heads; give the unit its `keys`")
    J, D = unit.keys.num_heads, unit.keys.head_dim
    covariance, metric = unit.half(0)
    key_up = torch.zeros(J, D, D, J, dtype=torch.float64)  # head, channel of y, i, head
    key_down = torch.zeros(D, J, J, D, dtype=torch.float64)
    for j in range(J):
        part = slice(j * D, (j + 1) * D)
        basis = whitened_basis(covariance[part, part], metric[part, part])
        key_up[j, :, :, j] = basis.up
        key_down[:, j, j] = basis.down
    values = whitened_basis(*unit.half(1))
    down = torch.block_diag(key_down.reshape(J * D, J * D), values.down)
    factors = scaled_factors(unit, "per_head", key_up.reshape(J * D, J * D), values.up, down)
    return replace(factors, heads=J)
