"""Keys stored rotated by their place in a block of slots, about their mean; with values or apart.

Stored of a token at place j of its block is E [R_j (k - mean); v - mean], see
`attention.rotated_keys`. Over a text every place comes as often as any other, so the moments that
a latent sees are averaged over the places of a block. Frequencies that hardly turn within a block
keep all that they have in common with each other, across heads and with values; fast ones lose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import PlanError
from .bases import joint_bases, separate_bases
from .factors import Bases, KeyShape, Unit

BLOCK_SLOTS = 64


def rotated(units: Sequence[Unit]) -> list[Bases]:
    return [separate_bases(seen_in_blocks(unit), "rotate") for unit in units]


def rotated_joint(units: Sequence[Unit]) -> list[Bases]:
    return [joint_bases(seen_in_blocks(unit), "rotate_joint") for unit in units]


def seen_in_blocks(unit: Unit) -> Unit:
    """The unit with moments of its keys rotated by their places, averaged over a block.

    Raises:
        PlanError: keys that cannot be stored rotated.
    """
    keys = _that_turn(unit.keys)
    return replace(
        unit,
        covariance=_averaged(unit.covariance, keys),
        metric=_averaged(unit.metric, keys),
    )


def _averaged(matrix: Tensor, keys: KeyShape) -> Tensor:
    """Mean over the places j of a block of R_j M R_j^T: a place is a sum of powers of two, so the
    mean over twice as many places is that of two."""
    assert keys.block_angles is not None
    distance = 1
    while distance < len(keys.block_angles):
        at = torch.full((len(matrix),), distance)
        turned = in_blocks(in_blocks(matrix, keys, at).T, keys, at)
        matrix, distance = 0.5 * (matrix + turned), 2 * distance
    return 0.5 * (matrix + matrix.T)


def in_blocks(
    vectors: Tensor, keys: KeyShape | None, places: Tensor, *, back: bool = False
) -> Tensor:
    """Vectors (n, 2*J*D) over [k; v] with the keys of each rotated by its place, (n,), in a block.

    Args:
        back: rotate the other way.
    """
    keys = _that_turn(keys)
    assert keys.block_angles is not None
    angles = keys.block_angles[places].to(vectors.dtype)[:, None]  # (n, 1, rotary dim / 2)
    cos, sin = angles.cos(), -angles.sin() if back else angles.sin()
    J, D, half = keys.num_heads, keys.head_dim, keys.rotary_dim // 2
    heads = vectors[:, : J * D].unflatten(1, (J, D))
    first, second, rest = heads.split([half, half, D - 2 * half], dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    return torch.cat([turned.flatten(1), vectors[:, J * D :]], dim=1)


def sampled_places(count: int, keys: KeyShape | None) -> Tensor:
    """Places (count,) of samples in their blocks: each equally often, in no order."""
    angles = _that_turn(keys).block_angles
    assert angles is not None
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=generator) % len(angles)


def _that_turn(keys: KeyShape | None) -> KeyShape:
    if keys is None:
        raise PlanError("rotated keys need the rotated channels; give the unit its `keys`")
    if keys.cannot_rotate is not None:
        raise PlanError(f"keys cannot be stored rotated: {keys.cannot_rotate}")
    return keys
