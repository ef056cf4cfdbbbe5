"""Bits for every latent channel of all layers under one byte budget.

Channels are decorrelated in the metric of the loss, so their losses add up: channel i of variance
v_i costs lambda_i * delta_i(b) when stored with b bits, and lambda_i * v_i when dropped.
Channels go in runs of 16 (8 in narrow latents), sorted by lambda; each run gets the width that is
worth its bytes (reverse water-filling over the lower convex hulls of all runs).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..codecs import RowCodec
from ..codecs.levels import UNIFORM_CLIP, levels_of
from ..errors import PlanError
from ..linalg import projection_loss
from .latent_kv import LatentFactors, Unit

RUN_CHANNELS = 16
NARROW_RUN_CHANNELS = 8
NARROW_LATENT = 256
"""Latents of fewer channels than this go in runs of 8, or a few runs would be all they have."""
HEAD_BYTES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """A run of channels that share a width.

    Attributes:
        module: index of the attention module.
        channels: their positions in the module's full-rank latent, by falling loss.
        losses: expected loss by width in bits, summed over channels and layers.
        num_layers: layers that store them.
    """

    module: int
    channels: Tensor
    losses: dict[int, float]
    num_layers: int

    def bytes_at(self, bits: int) -> int:
        return len(self.channels) * bits // 8 * self.num_layers


def code_channels(
    factors: Sequence[LatentFactors],
    units: Sequence[Unit],
    samples: Sequence[Tensor | None],
    widths: Sequence[int],
    budget_bytes: float,
) -> list[tuple[LatentFactors, tuple[tuple[int, int], ...]]]:
    """Choose widths for the channels of full-rank factors, and drop those that are not worth any.

    Args:
        factors: full-rank factors with channels of unit variance, one per module.
        units: the modules' covariances and metrics.
        samples: calibration samples of y = [k; v], (tokens, 2*J*D), to measure distortions on;
            None for a module without, whose y are then taken as normal.
        widths: allowed bits, without 0.
        budget_bytes: per token, over all layers.

    Returns:
        The factors reduced to the kept channels, with losses that include the coding, and the
        (channels, bits) of their runs.

    Raises:
        PlanError: if the budget has no room for one run of the smallest width per module.
    """
    latents = [
        _latents(factor, unit, sample)
        for factor, unit, sample in zip(factors, units, samples, strict=True)
    ]
    groups = [
        group
        for index, (factor, unit) in enumerate(zip(factors, units, strict=True))
        for group in _groups(index, factor, unit, latents[index], widths)
    ]
    chosen = _water_fill(groups, sorted(widths), budget_bytes, len(factors))
    results = []
    for index, (factor, unit) in enumerate(zip(factors, units, strict=True)):
        kept = [
            (group, bits)
            for group, bits in zip(groups, chosen, strict=True)
            if group.module == index and bits > 0
        ]
        results.append(_reduced(factor, unit, kept, latents[index]))
    return results


def channel_costs(factor: LatentFactors, unit: Unit) -> Tensor:
    """lambda of each channel: what a squared error of one costs per layer, (R,)."""
    return torch.einsum("nr,nm,mr->r", factor.up, unit.metric, factor.up)


def channel_variances(factor: LatentFactors, unit: Unit) -> Tensor:
    """Variance of each channel, (R,); one, or less for channels that hardly vary."""
    variance = torch.einsum("rn,nm,rm->r", factor.encoder, unit.covariance, factor.encoder)
    return variance.clamp_min(0.0)


def measured_distortion(latents: Tensor, bits: int) -> Tensor:
    """Mean squared error of each channel of latents (tokens, R) at a width, on these tokens.

    Elements beyond the levels count with the gain that they would have a token escape to.
    """
    if bits == 16:
        return (latents.half().double() - latents).square().mean(0)
    levels = levels_of(bits)
    edges = 0.5 * (levels[1:] + levels[:-1])
    gain = torch.exp2((latents.abs() / UNIFORM_CLIP).clamp_min(1.0).log2().ceil())
    codes = torch.bucketize((latents / gain).contiguous(), edges)
    return (levels[codes] * gain - latents).square().mean(0)


def channel_reach(costs: Tensor, distortions: Tensor) -> Tensor:
    """How far each channel may go before its token is escaped, (R,), float32.

    Clipping channel i at c costs lambda_i (|x| - c)^2; a gain makes the whole row coarser, which
    costs about what the row's coding costs already. The reach is where the two are equal.

    Args:
        costs: lambda of each channel, (R,).
        distortions: mean squared error of each channel at its width, (R,).
    """
    coding = (costs * distortions).sum()
    tiny = torch.finfo(torch.float64).tiny
    return (UNIFORM_CLIP + (coding / costs.clamp_min(tiny)).sqrt()).clamp_max(1e6).float()


def _latents(factor: LatentFactors, unit: Unit, sample: Tensor | None) -> Tensor:
    """Sampled latents (tokens, R), float64."""
    if sample is None:
        variance = channel_variances(factor, unit)
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(4096, len(variance), generator=generator, dtype=torch.float64)
        return normal * variance.sqrt()
    return (sample.double() - factor.mean) @ factor.encoder.T


def _groups(
    index: int, factor: LatentFactors, unit: Unit, latents: Tensor, widths: Sequence[int]
) -> list[ChannelGroup]:
    costs = channel_costs(factor, unit)
    losses = costs * channel_variances(factor, unit)
    tables = {bits: costs * measured_distortion(latents, bits) for bits in widths}
    groups = []
    length = NARROW_RUN_CHANNELS if len(losses) < NARROW_LATENT else RUN_CHANNELS
    for part in _parts(factor):
        order = part[losses[part].argsort(descending=True, stable=True)]
        for start in range(0, len(order), length):
            channels = order[start : start + length]
            by_width = {0: losses[channels].sum()}
            by_width |= {bits: table[channels].sum() for bits, table in tables.items()}
            groups.append(
                ChannelGroup(
                    module=index,
                    channels=channels,
                    losses={b: float(loss) * unit.num_layers for b, loss in by_width.items()},
                    num_layers=unit.num_layers,
                )
            )
    return groups


def _parts(factor: LatentFactors) -> list[Tensor]:
    """Channels that may change places: all of a joint latent, those of K and of V apart."""
    rank, key_rank = factor.encoder.shape[0], factor.key_up.shape[1]
    if factor.method == "joint":
        return [torch.arange(rank)]
    return [torch.arange(key_rank), torch.arange(key_rank, rank)]


def _water_fill(
    groups: Sequence[ChannelGroup], widths: Sequence[int], budget_bytes: float, num_modules: int
) -> list[int]:
    """Width of each group, 0 for dropped, by falling loss per byte along its convex hull."""
    chosen = [0] * len(groups)
    spent = 0.0
    for index in range(num_modules):  # every module keeps at least one run, and has a head byte
        first = next(i for i, group in enumerate(groups) if group.module == index)
        chosen[first] = widths[0]
        spent += groups[first].bytes_at(widths[0])
        if min(widths) < 16:
            spent += HEAD_BYTES * groups[first].num_layers
    if spent > budget_bytes:
        raise PlanError(
            f"the budget of {budget_bytes:.1f} bytes per token is below the {spent:.0f} bytes that "
            f"one run of channels per latent takes; lower compression_ratio"
        )
    heap: list[tuple[float, int, int]] = []

    def push(i: int) -> None:
        step = _next_step(groups[i], chosen[i], widths, budget_bytes - spent)
        if step is not None:
            heapq.heappush(heap, (-step[1], i, step[0]))

    for i in range(len(groups)):
        push(i)
    while heap:
        _, i, bits = heapq.heappop(heap)
        more = groups[i].bytes_at(bits) - groups[i].bytes_at(chosen[i])
        if spent + more <= budget_bytes:
            spent += more
            chosen[i] = bits
        push(i)  # with what is left, perhaps a smaller step
    return chosen


def _next_step(
    group: ChannelGroup, bits: int, widths: Sequence[int], room_bytes: float
) -> tuple[int, float] | None:
    """The wider width within reach with the steepest fall of loss per byte, and that slope."""
    best = None
    for wider in widths:
        more = group.bytes_at(wider) - group.bytes_at(bits)
        if wider <= bits or more > room_bytes:
            continue
        slope = (group.losses[bits] - group.losses[wider]) / more
        if slope > 0 and (best is None or slope > best[1]):
            best = (wider, slope)
    return best


def _reduced(
    factor: LatentFactors, unit: Unit, kept: list[tuple[ChannelGroup, int]], latents: Tensor
) -> tuple[LatentFactors, tuple[tuple[int, int], ...]]:
    """The factors with the kept channels in the order of their runs, and the runs."""
    key_rank = factor.key_up.shape[1]
    offset = factor.encoder.shape[0] - factor.value_up.shape[1]
    channels = torch.cat([group.channels for group, _ in kept])
    keys = channels[channels < key_rank]
    values = channels[channels >= offset] - offset
    runs: list[tuple[int, int]] = []
    of_values = [bool(group.channels[0] >= key_rank) for group, _ in kept]
    for i, (group, bits) in enumerate(kept):
        if runs and runs[-1][1] == bits and of_values[i] == of_values[i - 1]:
            runs[-1] = (runs[-1][0] + len(group.channels), bits)
        else:
            runs.append((len(group.channels), bits))
    costs = channel_costs(factor, unit)[channels]
    codec = RowCodec(tuple(runs))
    exact = latents[:, channels].float()
    widths = torch.cat([torch.full((len(group.channels),), bits) for group, bits in kept])
    tables = {
        bits: measured_distortion(latents, bits)[channels] for bits in widths.unique().tolist()
    }
    distortions = sum(torch.where(widths == bits, table, 0.0) for bits, table in tables.items())
    reach = channel_reach(costs, distortions)
    coded = codec.decode(codec.encode(exact, reach), torch.float32)
    distortion = (coded - exact).double().square().mean(0)
    up, down = factor.up[:, channels], factor.encoder[channels]
    identity = torch.eye(2 * unit.width, dtype=torch.float64)
    loss = projection_loss(up, down, unit.covariance, unit.metric)
    loss += float((costs * distortion).sum())
    error = projection_loss(up, down, unit.covariance, identity)
    error += float((up.square().sum(0) * distortion).sum())
    reduced = replace(
        factor,
        encoder=down,
        key_up=factor.key_up[:, keys],
        value_up=factor.value_up[:, values],
        loss=loss,
        expected_error=error,
        error_bound=loss / float(torch.linalg.eigvalsh(unit.metric)[0]),
        reach=reach,
        relative_error=error / float(unit.covariance.trace().clamp_min(1e-300)),
    )
    return reduced, tuple(runs)
