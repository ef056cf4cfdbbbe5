"""Bits for every latent channel of all layers under one byte budget.

Channels are decorrelated in the metric of the loss, so their losses add up: channel i of variance
v_i costs lambda_i * delta_i(b) when stored with b bits, and lambda_i * v_i when dropped.
Channels go in runs of 16 (4 in narrow latents), sorted by lambda; each run gets the width that is
worth its bytes (`water_filling`). A narrow latent goes without gains where the byte that they take
is worth more as channels: by the loss that calibration samples show, of what is clipped as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ...codecs import RowCodec, RowFormat
from ...linalg import projection_loss
from ...methods import LATENT_KINDS
from .distortion import (
    channel_costs,
    channel_reach,
    channel_variances,
    measured_distortion,
    sampled_latents,
)
from .factors import LatentFactors, Unit
from .water_filling import ChannelGroup, water_fill

RUN_CHANNELS = 16
NARROW_RUN_CHANNELS = 4
NARROW_LATENT = 256
"""Latents of fewer channels than this go in runs of 4, or a few runs would be all they have."""
WIDE_ROW_ALIGNMENT = 16
"""Rows of latents that are not narrow start at multiples of what a GPU thread loads at once."""
WHOLE_BYTES = 4
"""Runs are a multiple of this many channels, so that 2 bits each fill whole bytes."""

Runs = tuple[tuple[int, int], ...]
Filling = list[tuple[ChannelGroup, int]]
"""Every group of channels with its width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedFactors:
    """What `code_channels` decides for one module.

    Attributes:
        factors: reduced to the kept channels, in the order of their runs.
        runs: (channels, bits) of each run.
        row_format: how rows are written.
        escaped_share: share of calibration tokens that needed a gain.
        saturated_share: share of calibration elements beyond the reach of every gain or scale.
    """

    factors: LatentFactors
    runs: Runs
    row_format: RowFormat
    escaped_share: float
    saturated_share: float


def row_alignment(kv_width: int) -> int:
    """Bytes that rows of a module with `kv_width` = J * D are padded to a multiple of."""
    return 1 if 2 * kv_width < NARROW_LATENT else WIDE_ROW_ALIGNMENT


def run_channels(channels: int) -> int:
    """Channels of a run of a latent with so many, at least."""
    return NARROW_RUN_CHANNELS if channels < NARROW_LATENT else RUN_CHANNELS


def code_channels(
    factors: Sequence[LatentFactors],
    units: Sequence[Unit],
    samples: Sequence[Tensor | None],
    widths: Sequence[int],
    budget_bytes: float,
    *,
    formats: Sequence[RowFormat],
    hadamard: bool = False,
) -> list[CodedFactors]:
    """Choose widths for the channels of full-rank factors, and drop those that are not worth any.

    Args:
        factors: full-rank factors with channels of unit variance, one per module.
        units: the modules' covariances and metrics.
        samples: calibration samples of y = [k; v], (tokens, 2*J*D), to measure distortions on;
            None for a module without, whose y are then taken as normal.
        widths: allowed bits, without 0.
        budget_bytes: per token, over all layers.
        formats: how each module's rows are written; narrow ones may lose their gains.
        hadamard: mix the channels of each run by a Hadamard matrix, which evens out their shapes.

    Raises:
        PlanError: if the budget has no room for one run of the smallest width per module.
    """
    latents = [
        sampled_latents(factor, unit, sample)
        for factor, unit, sample in zip(factors, units, samples, strict=True)
    ]
    num_layers = [unit.num_layers for unit in units]

    @cache
    def groups(index: int, row_format: RowFormat) -> list[ChannelGroup]:
        return _groups(index, factors[index], units[index], latents[index], widths, row_format)

    def fill(formats: Sequence[RowFormat]) -> Filling:
        found = [group for index, one in enumerate(formats) for group in groups(index, one)]
        chosen = water_fill(found, sorted(widths), budget_bytes, formats, num_layers)
        return list(zip(found, chosen, strict=True))

    formats, filling = _without_needless_gains(formats, widths, fill)
    results = []
    for index, (factor, unit) in enumerate(zip(factors, units, strict=True)):
        kept = [
            (group.channels, bits) for group, bits in filling if group.module == index and bits > 0
        ]
        kept = _least_at_the_head(factor, kept, formats[index])
        runs = _runs(factor, kept)
        channels = _in_row_order(factor, torch.cat([part for part, _ in kept]), runs)
        reduced, exact = _kept_channels(factor, channels), latents[index][:, channels]
        if hadamard:
            reduced, exact = _mixed(reduced, runs, exact)
        results.append(_measured(reduced, unit, runs, formats[index], exact))
    return results


def _without_needless_gains(
    formats: Sequence[RowFormat], widths: Sequence[int], fill: Callable[[list[RowFormat]], Filling]
) -> tuple[list[RowFormat], Filling]:
    """Formats whose gains take no bytes that are worth more as channels, and their filling.

    Only rows that are not padded are tried: in wide ones a byte is little, and gains guard against
    what calibration has not seen.
    """

    def loss(filling: Filling) -> float:
        return sum(group.losses[bits] for group, bits in filling)

    formats = list(formats)
    filling = fill(formats)
    for index, one in enumerate(formats):
        leveled = one.scales == "static" and any(one.kind(bits).coded for bits in widths)
        if not (leveled and one.gains and one.alignment == 1):
            continue
        others = [*formats[:index], replace(one, gains=False), *formats[index + 1 :]]
        without = fill(others)
        if loss(without) < loss(filling):
            formats, filling = others, without
    return formats, filling


def _groups(
    index: int,
    factor: LatentFactors,
    unit: Unit,
    latents: Tensor,
    widths: Sequence[int],
    format: RowFormat,
) -> list[ChannelGroup]:
    costs = channel_costs(factor, unit)
    losses = costs * channel_variances(factor, unit)
    length = run_channels(len(losses))
    groups = []
    for atoms in factor.atoms():
        order = losses[atoms].sum(-1).argsort(descending=True, stable=True)
        for channels in _chunks(atoms[order], length):
            by_width = {0: losses[channels].sum()}
            for bits in widths:
                distortion = measured_distortion(latents[:, channels], bits, format)
                by_width[bits] = (costs[channels] * distortion).sum()
            by_width = {bits: float(loss) * unit.num_layers for bits, loss in by_width.items()}
            groups.append(ChannelGroup(module=index, channels=channels, losses=by_width))
    return groups


def _chunks(atoms: Tensor, length: int) -> list[Tensor]:
    """Channels of atoms (n, size) in order, in runs of at least `length` that fill whole bytes."""
    size = atoms.shape[1]
    per_run = -(-length // size)
    while per_run * size % WHOLE_BYTES:
        per_run += 1
    chunks = [part.flatten() for part in atoms.split(per_run)]
    if len(chunks) > 1 and len(chunks[-1]) % WHOLE_BYTES:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks


def _least_at_the_head(
    factor: LatentFactors, kept: list[tuple[Tensor, int]], format: RowFormat
) -> list[tuple[Tensor, int]]:
    """The kept groups with the last channel of the first 8-bit run put first: there it shares its
    byte with the gain and is coarse in escaped tokens, so the one worth least goes there."""
    if 8 not in (bits for _, bits in kept) or not (format.kind(8).coded and format.gains):
        return kept
    start = next(i for i, (_, bits) in enumerate(kept) if bits == 8)
    first_run = _runs(factor, kept[start:])[0][0]
    stop, channels = start, 0
    while channels < first_run:
        channels += len(kept[stop][0])
        stop += 1
    size = factor.atoms()[0].shape[1] if kept[start][0][0] < factor.key_rank else 1
    atoms = torch.cat([part for part, _ in kept[start:stop]]).view(-1, size)
    return [*kept[:start], (atoms.roll(1, dims=0).flatten(), 8), *kept[stop:]]


def _runs(factor: LatentFactors, kept: list[tuple[Tensor, int]]) -> Runs:
    """Groups of (channels, bits) as runs; neighbours of one width and one kind are one run."""
    first_value = factor.key_rank if factor.value_offset else None
    runs: list[tuple[int, int]] = []
    of_values: bool | None = None
    for channels, bits in kept:
        values = first_value is not None and bool(channels[0] >= first_value)
        if runs and runs[-1][1] == bits and of_values == values:
            runs[-1] = (runs[-1][0] + len(channels), bits)
        else:
            runs.append((len(channels), bits))
        of_values = values
    return tuple(runs)


def _in_row_order(factor: LatentFactors, channels: Tensor, runs: Runs) -> Tensor:
    """Kept channels in the order of a row: where heads have keys of their own, a run holds those of
    head 0, then of head 1, and so on."""
    if factor.key_heads is None:
        return channels
    head = torch.full((len(factor.encoder),), -1)
    head[: factor.key_rank] = factor.key_heads
    parts = channels.split([length for length, _ in runs])
    return torch.cat([part[head[part].argsort(stable=True)] for part in parts])


def _kept_channels(factor: LatentFactors, channels: Tensor) -> LatentFactors:
    """The factors with these channels only, in this order."""
    keys = channels[channels < factor.key_rank]
    values = channels[channels >= factor.value_offset] - factor.value_offset
    frequencies, heads = factor.frequencies, factor.key_heads
    return replace(
        factor,
        encoder=factor.encoder[channels],
        key_up=factor.key_up[:, keys],
        value_up=factor.value_up[:, values],
        frequencies=None if frequencies is None else frequencies[keys[::2] // 2],
        key_heads=None if heads is None else heads[keys],
    )


def _mixed(factor: LatentFactors, runs: Runs, latents: Tensor) -> tuple[LatentFactors, Tensor]:
    """The factors in a basis where the channels of each run are mixed by a Hadamard matrix, and the
    latents (tokens, R) in it. Keys that are stored by head or frequency stay as they are."""
    mixing = torch.eye(len(factor.encoder), dtype=torch.float64)
    start = 0
    for channels, bits in runs:
        if bits < 16 and (start >= factor.key_rank or LATENT_KINDS[factor.method].mixes_keys):
            size = channels & -channels  # the largest power of two that divides it
            block = torch.block_diag(*[hadamard_matrix(size)] * (channels // size))
            mixing[start : start + channels, start : start + channels] = block
        start += channels
    offset, key_rank = factor.value_offset, factor.key_rank
    mixed = replace(
        factor,
        encoder=mixing @ factor.encoder,
        key_up=factor.key_up @ mixing[:key_rank, :key_rank].T,
        value_up=factor.value_up @ mixing[offset:, offset:].T,
    )
    return mixed, latents @ mixing.T


def hadamard_matrix(size: int) -> Tensor:
    """Orthogonal Hadamard matrix (size, size), size a power of two (Sylvester's construction)."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.cat(
            [torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)]
        )
    return matrix / size**0.5


def _measured(
    factor: LatentFactors, unit: Unit, runs: Runs, format: RowFormat, latents: Tensor
) -> CodedFactors:
    """Reach and expected losses of factors whose latents (tokens, R) are coded in these runs."""
    codec = RowCodec(runs, format)
    costs = channel_costs(factor, unit)
    exact = latents.float()
    alone = [
        measured_distortion(latents[:, run.at_channel], run.bits, format) for run in codec.runs
    ]
    reach = channel_reach(costs, torch.cat(alone))
    rows = codec.encode(exact, reach)
    distortion = (codec.decode(rows, torch.float32) - exact).double().square().mean(0)
    up, down = factor.up, factor.encoder
    identity = torch.eye(2 * unit.width, dtype=torch.float64)
    loss = projection_loss(up, down, unit.covariance, unit.metric)
    loss += float((costs * distortion).sum())
    error = projection_loss(up, down, unit.covariance, identity)
    error += float((up.square().sum(0) * distortion).sum())
    measured = replace(
        factor,
        loss=loss,
        expected_error=error,
        error_bound=loss / float(torch.linalg.eigvalsh(unit.metric)[0]),
        reach=reach,
        relative_error=error / float(unit.covariance.trace().clamp_min(1e-300)),
    )
    return CodedFactors(
        factors=measured,
        runs=runs,
        row_format=format,
        escaped_share=float(codec.escaped(rows).double().mean()),
        saturated_share=codec.saturated(exact) / max(1, exact.numel()),
    )
