"""Latents of groups of heads: bases of each group by itself, side by side in one module.

As heads are split over devices (GLA, arXiv 2505.21487), a device that holds some groups needs only
their channels of a row. Groups go in step, as single heads do in `per_head`: channel i of every
group has one width, so that all devices hold as many bytes. What heads of different groups have in
common is stored by each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import PlanError
from ...ranks import Spectrum
from .factors import Bases, LatentFactors, Unit, with_losses


def grouped_bases(
    unit: Unit, num_groups: int, fit: Callable[[list[Unit]], list[Bases]], seen: Unit
) -> Bases:
    """Bases of one module, of which those of a group reach its heads only.

    Args:
        num_groups: groups of heads.
        fit: makes bases of modules.
        seen: the module with the moments that its latents see.

    Raises:
        PlanError: heads that cannot be divided into so many groups.
    """
    places = group_places(unit, num_groups)
    groups = fit([_group(unit, own) for own in places])
    spectra = tuple(_in_step(parts) for parts in zip(*(one.spectra for one in groups), strict=True))

    def at(ranks: Sequence[int]) -> list[LatentFactors]:
        factors = [factor for one in groups for factor in one.at(ranks)]
        return [side_by_side(factors, places, seen)]

    return Bases((seen,), spectra, at)


def check_groups(num_heads: int, num_groups: int) -> None:
    """Raise `PlanError` unless the key heads of a layer can be divided into so many groups."""
    if num_heads % num_groups:
        divisors = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
        raise PlanError(
            f"head_groups={num_groups} does not divide the {num_heads} key heads of a layer; give "
            f"one of {', '.join(map(str, divisors))}"
        )


def group_places(unit: Unit, num_groups: int) -> list[Tensor]:
    """Places of each group's keys, and behind them of its values, in y = [k; v].

    Raises:
        PlanError: heads that cannot be divided into so many groups.
    """
    if unit.keys is None:
        raise PlanError("groups of heads need the number of heads; give the unit its `keys`")
    check_groups(unit.keys.num_heads, num_groups)
    places = torch.arange(len(unit.mean))
    halves = places.tensor_split((unit.key_width,))
    keys, values = (half.chunk(num_groups) for half in halves)
    return [torch.cat(own) for own in zip(keys, values, strict=True)]


def _group(unit: Unit, own: Tensor) -> Unit:
    """The heads of a group as a module."""
    assert unit.keys is not None
    heads = unit.keys.num_heads * len(own) // len(unit.mean)
    return replace(
        unit,
        covariance=unit.covariance[own][:, own],
        metric=unit.metric[own][:, own],
        mean=unit.mean[own],
        keys=replace(unit.keys, num_heads=heads),
        split_metric=None,
    )


def _in_step(spectra: Sequence[Spectrum]) -> Spectrum:
    """Of directions that all groups keep or leave out together."""
    values = torch.stack([spectrum.values for spectrum in spectra]).sum(0)
    bytes_per_channel = sum(spectrum.bytes_per_channel for spectrum in spectra)
    return replace(spectra[0], values=values, bytes_per_channel=bytes_per_channel)


def side_by_side(
    groups: Sequence[LatentFactors], places: Sequence[Tensor], unit: Unit
) -> LatentFactors:
    """Factors of a module of those of its groups, which keep equally many channels.

    Args:
        places: of each group's keys and values in y.
    """
    first = groups[0]
    keys, values = first.key_rank, first.value_offset
    # Where keys and values are apart, the values' channels of all groups follow all of the keys'.
    parts = (slice(None),) if values == 0 else (slice(keys), slice(values, None))
    rows, numbers, heads = [], [], []
    for part in parts:
        for number, (group, own) in enumerate(zip(groups, places, strict=True)):
            encoder = group.encoder[part]
            rows.append(encoder.new_zeros(len(encoder), len(unit.mean)))
            rows[-1][:, own] = encoder
            numbers.append(torch.full((len(encoder),), number))
    for number, group in enumerate(groups):
        if group.key_heads is not None:
            heads.append(group.key_heads + number * group.num_key_heads)
    return with_losses(
        replace(
            first,
            encoder=torch.cat(rows),
            key_up=torch.block_diag(*[group.key_up for group in groups]),
            value_up=torch.block_diag(*[group.value_up for group in groups]),
            mean=unit.mean,
            key_heads=torch.cat(heads) if heads else None,
            channel_groups=torch.cat(numbers),
        ),
        unit,
    )
