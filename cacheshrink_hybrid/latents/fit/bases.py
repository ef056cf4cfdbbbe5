"""Low-rank bases of keys and values, by whitened singular vectors.

joint      one basis for [k; v] of a layer; contains `separate` as a special case
separate   one basis for k and one for v
xkv        as `separate`, with each basis shared by a group of neighbouring layers
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ...errors import PlanError
from ...linalg import WhitenedBasis, whitened_basis
from ...ranks import Spectrum
from ...spec import BYTES_16BIT
from .factors import Bases, LatentFactors, Unit, scaled_factors


def joint(units: Sequence[Unit]) -> list[Bases]:
    return [joint_bases(unit, "joint") for unit in units]


def joint_bases(unit: Unit, method: str) -> Bases:
    """One basis for [k; v] of a module, for latents of this method."""
    basis = whitened_basis(unit.covariance, unit.metric)

    def at(ranks: Sequence[int]) -> list[LatentFactors]:
        (rank,) = ranks
        up, down = basis.up[:, :rank], basis.down[:rank]
        return [scaled_factors(unit, method, up[: unit.key_width], up[unit.key_width :], down)]

    return Bases((unit,), (_spectrum(basis, unit.num_layers),), at)


def separate(units: Sequence[Unit]) -> list[Bases]:
    return [separate_bases(unit, "separate") for unit in units]


def separate_bases(unit: Unit, method: str) -> Bases:
    """A basis for k and one for v of a module, for latents of this method."""
    key, value = (whitened_basis(*unit.half(half)) for half in (0, 1))

    def at(ranks: Sequence[int]) -> list[LatentFactors]:
        k, v = ranks
        down = torch.block_diag(key.down[:k], value.down[:v])
        return [scaled_factors(unit, method, key.up[:, :k], value.up[:, :v], down)]

    spectra = tuple(_spectrum(basis, unit.num_layers) for basis in (key, value))
    return Bases((unit,), spectra, at)


def shared_by_groups(
    units: Sequence[Unit],
    *,
    cross_layer_group_size: int,
    xkv_skip_early_layers: int,
    keep_early_layers_original: bool,
) -> list[Bases]:
    """Bases of groups of neighbouring modules, after the first ones, which have their own.

    Raises:
        PlanError: modules of different widths in one group.
    """
    # Layers that are kept as they are are not among the units.
    alone = 0 if keep_early_layers_original else min(xkv_skip_early_layers, len(units))
    groups = [units[i : i + 1] for i in range(alone)]
    groups += [
        units[i : i + cross_layer_group_size]
        for i in range(alone, len(units), cross_layer_group_size)
    ]
    return [_shared(group, number) for number, group in enumerate(groups)]


def _shared(group: Sequence[Unit], number: int) -> Bases:
    if len({(unit.key_width, len(unit.mean)) for unit in group}) > 1:
        raise PlanError(
            "xkv needs equal widths of keys and of values within a group; use "
            "compression_method='separate'"
        )
    pair = [
        whitened_basis(
            sum(unit.half(half)[0] for unit in group) / len(group),
            sum(unit.half(half)[1] for unit in group) / len(group),
        )
        for half in (0, 1)
    ]
    layers = sum(unit.num_layers for unit in group)
    spectra = tuple(_spectrum(basis, layers) for basis in pair)
    return Bases(tuple(group), spectra, partial(_shared_factors, group, pair, number))


def _shared_factors(
    group: Sequence[Unit], pair: Sequence[WhitenedBasis], number: int, ranks: Sequence[int]
) -> list[LatentFactors]:
    """The group's bases with the encoder that is best for each module: E = (U^T M U)^-1 U^T M.

    Channels keep the group's scale, since the bases are shared."""
    ups = [basis.up[:, :rank] for basis, rank in zip(pair, ranks, strict=True)]
    factors = []
    for unit in group:
        downs = []
        for half, up in enumerate(ups):
            metric = unit.half(half)[1]
            downs.append(torch.linalg.solve(up.T @ metric @ up, up.T @ metric))
        down = torch.block_diag(*downs)
        factors.append(scaled_factors(unit, "xkv", ups[0], ups[1], down, group=number))
    return factors


def _spectrum(basis: WhitenedBasis, num_layers: int) -> Spectrum:
    return Spectrum(values=basis.spectrum, bytes_per_channel=BYTES_16BIT, num_layers=num_layers)
