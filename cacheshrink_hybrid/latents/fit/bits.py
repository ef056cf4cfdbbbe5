"""Bits for every latent channel of all layers under one byte budget.

Channels are decorrelated in the metric of the loss, so their losses add up: channel i of variance
v_i costs lambda_i * delta_i(b) when stored with b bits, and lambda_i * v_i when dropped.
Channels go in runs of 16 (4 in narrow latents), sorted by lambda; each run gets the width that is
worth its bytes (`water_filling`). What a width loses is measured on calibration samples, each token
divided by the gain of its row: first by that of a row of 4 bits throughout, then by that of the row
that this led to. A narrow latent goes without gains where the byte that they take is worth more as
channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...codecs import RowCodec, RowFormat
from ...freed_memory import return_freed_memory
from ...linalg import projection_loss
from ...methods import LATENT_KINDS
from .distortion import channel_costs, channel_variances, measured_distortion, sampled_latents
from .factors import LatentFactors, Unit
from .water_filling import ChannelGroup, water_fill

RUN_CHANNELS = 16
NARROW_RUN_CHANNELS = 4
NARROW_LATENT = 256
"""Latents of fewer channels than this go in runs of 4, or a few runs would be all they have."""
WIDE_ROW_ALIGNMENT = 16
"""Rows of latents that are not narrow start at multiples of what a GPU thread loads at once."""
FIRST_BITS = 4
"""Width of the rows that gains are first taken from."""
SAMPLED_TOKENS = 2048
"""Calibration tokens that codes are tried on, at the most."""

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
    """

    factors: LatentFactors
    runs: Runs
    row_format: RowFormat


SILENT = 1e-4
"""Standard deviation, as a share of the largest, up to which a channel is rounding of float32; such
channels are scaled up a hundredfold, see `factors.SPREAD_FLOOR`."""


def row_alignment(width: int) -> int:
    """Bytes that rows of a module whose [k; v] has so many elements are padded to a multiple of."""
    return 1 if width < NARROW_LATENT else WIDE_ROW_ALIGNMENT


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
    modules = [
        _Module(index, *parts, tuple(widths))
        for index, parts in enumerate(zip(factors, units, samples, strict=True))
    ]
    num_layers = [unit.num_layers for unit in units]

    row_parts = [factor.num_groups for factor in factors]

    def fill(formats: Sequence[RowFormat]) -> Filling:
        pairs = zip(modules, formats, strict=True)
        found = [group for module, format in pairs for group in module.groups(format)]
        chosen = water_fill(found, sorted(widths), budget_bytes, formats, num_layers, row_parts)
        return list(zip(found, chosen, strict=True))

    filling = fill(formats)
    for module, format in zip(modules, formats, strict=True):
        module.take_gains(format, filling)
    formats, filling = _without_needless_gains(formats, widths, fill)
    results = []
    for module, format in zip(modules, formats, strict=True):
        channels, runs = module.row(filling)
        silent = module.silent
        if not silent.sum() > silent[channels].sum():
            silent = torch.zeros_like(silent)
        reduced = _kept_channels(_silenced(module.factor, silent), channels)
        exact = module.latents.masked_fill(silent, 0)[:, channels]
        if hadamard:
            reduced, exact = _mixed(reduced, runs, exact.double())
        results.append(_measured(reduced, module.unit, runs, format, exact))
    return results


class _Module:
    """One module whose channels are to be coded.

    Args:
        index: among the modules.
        factor: with all its channels.
        unit: its covariance and metric.
        sample: of its y; None for normal ones.
        widths: allowed bits, without 0.
    """

    def __init__(
        self,
        index: int,
        factor: LatentFactors,
        unit: Unit,
        sample: Tensor | None,
        widths: tuple[int, ...],
    ) -> None:
        self.index, self.factor, self.unit, self.widths = index, factor, unit, widths
        sample = None if sample is None else sample[:: -(-len(sample) // SAMPLED_TOKENS)]
        latents = sampled_latents(factor, unit, sample)
        self.latents = latents[:: -(-len(latents) // SAMPLED_TOKENS)]
        self.costs = channel_costs(factor, unit)
        self._gains: Tensor | None = None
        self._losses: dict[tuple[RowFormat, int], Tensor] = {}

    @property
    def silent(self) -> Tensor:
        """Channels in which nothing varies but rounding, (R,) bool. Where some of them are dropped
        the others, which only fill a run, say nothing either: coded, they would be one of the two
        codes beside zero by chance, and anew in every pass."""
        encoder = self.factor.encoder
        variance = torch.einsum("rn,nm,rm->r", encoder, self.unit.covariance, encoder)
        return variance <= SILENT**2 * variance.max()

    def groups(self, format: RowFormat) -> list[ChannelGroup]:
        """Runs of channels to choose a width for, with what each width loses."""
        known = len(self._losses)
        groups = []
        for channels, part in self._chunks:
            losses = {
                bits: float(self._loss(format, bits)[channels].sum()) * self.unit.num_layers
                for bits in (0, *self.widths)
            }
            groups.append(
                ChannelGroup(module=self.index, part=part, channels=channels, losses=losses)
            )
        if len(self._losses) > known:  # what they were measured with would pile up
            return_freed_memory()
        return groups

    def _loss(self, format: RowFormat, bits: int) -> Tensor:
        """Expected loss of each channel per layer at a width, (R,)."""
        key = format, bits
        if key not in self._losses:
            if bits == 0:
                self._losses[key] = self._dropped
            else:
                gains = self._gains_of(format)
                distortion = measured_distortion(self.latents, bits, format, gains)
                self._losses[key] = self.costs * distortion
        return self._losses[key]

    @cached_property
    def _dropped(self) -> Tensor:
        return self.costs * channel_variances(self.factor, self.unit)

    @cached_property
    def _chunks(self) -> list[tuple[Tensor, int]]:
        """Channels of each group, in the order of their losses, and the part that it belongs to."""
        length = run_channels(len(self.costs))
        if self.factor.num_groups > 1:
            # As many of each group, so that codes of any width fill whole bytes of its part.
            length = max(length, (length // 2) * self.factor.num_groups)
        chunks = []
        for part, atoms in enumerate(self.factor.atoms()):
            order = self._dropped[atoms].sum(-1).argsort(descending=True, stable=True)
            per_run = -(-length // atoms.shape[1])
            chunks += [(chunk.flatten(), part) for chunk in atoms[order].split(per_run)]
        return chunks

    def _gains_of(self, format: RowFormat) -> Tensor | None:
        if not (format.gains and any(format.kind(bits).coded for bits in self.widths)):
            return None
        if self._gains is None:
            runs = ((self.latents.shape[1], FIRST_BITS),)
            self._gains = _gains(RowCodec(runs, format), self.latents, self.costs)
        return self._gains

    def take_gains(self, format: RowFormat, filling: Filling) -> None:
        """Measure with the gains of these rows from now on."""
        channels, runs = self.row(filling)
        codec = RowCodec(runs, format)
        if codec.gain_byte is not None:
            self._gains = _gains(codec, self.latents[:, channels], self.costs[channels])
            self._losses.clear()

    def row(self, filling: Filling) -> tuple[Tensor, Runs]:
        """Kept channels in the order of a row, and the runs that they make: keys before values
        where they are apart, and wide ones before narrow ones."""
        kept = [(group, bits) for group, bits in filling if group.module == self.index and bits]
        kept.sort(key=lambda one: (one[0].part, -one[1]))
        runs: list[tuple[int, int]] = []
        last: tuple[int, int] | None = None
        for group, bits in kept:
            if last == (group.part, bits):
                runs[-1] = runs[-1][0] + len(group.channels), bits
            else:
                runs.append((len(group.channels), bits))
            last = group.part, bits
        channels = torch.cat([group.channels for group, _ in kept])
        return _in_row_order(self.factor, channels, tuple(runs)), tuple(runs)


def _gains(codec: RowCodec, latents: Tensor, costs: Tensor) -> Tensor:
    """Gains (tokens, 1) of latents (tokens, R) in rows of a codec that has them."""
    gains = codec.gains(codec.encode(latents, costs.float()))
    assert gains is not None
    return gains


def _without_needless_gains(
    formats: Sequence[RowFormat], widths: Sequence[int], fill: Callable[[list[RowFormat]], Filling]
) -> tuple[list[RowFormat], Filling]:
    """Formats whose gains take no byte that is worth more as channels, and their filling.

    Only rows that are not padded are tried: in wide ones a byte is little, and gains guard against
    what calibration has not seen.
    """

    def loss(filling: Filling) -> float:
        return sum(group.losses[bits] for group, bits in filling)

    formats = list(formats)
    filling = fill(formats)
    for index, one in enumerate(formats):
        coded = any(one.kind(bits).coded for bits in widths)
        if not (coded and one.gains and one.alignment == 1):
            continue
        others = [*formats[:index], replace(one, gains=False), *formats[index + 1 :]]
        without = fill(others)
        if loss(without) < loss(filling):
            formats, filling = others, without
    return formats, filling


def _in_row_order(factor: LatentFactors, channels: Tensor, runs: Runs) -> Tensor:
    """Kept channels in the order of a row: where heads, or groups of them, have channels of their
    own, a run holds those of the first, then of the second, and so on."""
    owners = factor.owners
    parts = channels.split([length for length, _ in runs])
    return torch.cat([part[owners[part].argsort(stable=True)] for part in parts])


def _kept_channels(factor: LatentFactors, channels: Tensor) -> LatentFactors:
    """The factors with these channels only, in this order."""
    keys = channels[channels < factor.key_rank]
    values = channels[channels >= factor.value_offset] - factor.value_offset
    heads, groups = factor.key_heads, factor.channel_groups
    return replace(
        factor,
        encoder=factor.encoder[channels],
        key_up=factor.key_up[:, keys],
        value_up=factor.value_up[:, values],
        key_heads=None if heads is None else heads[keys],
        channel_groups=None if groups is None else groups[channels],
    )


def _silenced(factor: LatentFactors, silent: Tensor) -> LatentFactors:
    """The factors with nothing written to and read from these channels, (R,) bool."""
    return replace(
        factor,
        encoder=factor.encoder.masked_fill(silent[:, None], 0),
        key_up=factor.key_up.masked_fill(silent[: factor.key_rank], 0),
        value_up=factor.value_up.masked_fill(silent[factor.value_offset :], 0),
    )


def _mixed(factor: LatentFactors, runs: Runs, latents: Tensor) -> tuple[LatentFactors, Tensor]:
    """The factors in a basis where the channels of each run are mixed by a Hadamard matrix, and the
    latents (tokens, R) in it: those of each group of heads apart. Keys in channels of each head's
    own stay as they are."""
    mixing = torch.eye(len(factor.encoder), dtype=torch.float64)
    start = 0
    for channels, bits in runs:
        if bits < 16 and (start >= factor.key_rank or LATENT_KINDS[factor.method].mixes_keys):
            own = channels // factor.num_groups
            size = own & -own  # the largest power of two that divides it
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
    """Expected losses of factors whose latents (tokens, R) are coded in these runs."""
    codec = RowCodec(runs, format)
    costs = channel_costs(factor, unit)
    relative = (costs / costs.max().clamp_min(1e-300)).float()
    exact = latents.float()
    rows = codec.encode(exact, relative)
    distortion = (codec.decode(rows, torch.float32) - exact).double().square().mean(0)
    up, down = factor.up, factor.encoder
    identity = torch.eye(len(unit.mean), dtype=torch.float64)
    loss = projection_loss(up, down, unit.covariance, unit.metric)
    loss += float((costs * distortion).sum())
    error = projection_loss(up, down, unit.covariance, identity)
    error += float((up.square().sum(0) * distortion).sum())
    measured = replace(
        factor,
        loss=loss,
        expected_error=error,
        error_bound=loss / float(torch.linalg.eigvalsh(unit.metric)[0]),
        costs=relative,
        relative_error=error / float(unit.covariance.trace().clamp_min(1e-300)),
    )
    return CodedFactors(factors=measured, runs=runs, row_format=format)
