"""What it costs to store a latent channel in few bits, found on samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ...codecs import RowFormat
from ...codecs.levels import UNIFORM_CLIP, levels_of
from .factors import LatentFactors, Unit


def channel_costs(factor: LatentFactors, unit: Unit) -> Tensor:
    """lambda of each channel: what a squared error of one costs per layer, (R,)."""
    return torch.einsum("nr,nm,mr->r", factor.up, unit.metric, factor.up)


def channel_variances(factor: LatentFactors, unit: Unit) -> Tensor:
    """Variance of each channel, (R,); one, or less for channels that hardly vary."""
    variance = torch.einsum("rn,nm,rm->r", factor.encoder, unit.covariance, factor.encoder)
    return variance.clamp_min(0.0)


def measured_distortion(latents: Tensor, bits: int, format: RowFormat) -> Tensor:
    """Mean squared error of each channel of a run of latents (tokens, n) at a width.

    With static scales, elements beyond the levels count with the gain that they would have a token
    escape to, or as clipped without gains; with token scales, the run has a scale of its own.
    """
    kind = format.kind(bits)
    if not kind.coded:
        return (latents.to(kind.dtype).double() - latents).square().mean(0)
    levels = levels_of(bits)
    edges = 0.5 * (levels[1:] + levels[:-1])
    scale: Tensor | float
    if not format.gains:
        scale = 1.0
    elif format.scales == "static":
        scale = torch.exp2((latents.abs() / UNIFORM_CLIP).clamp_min(1.0).log2().ceil())
    else:
        scale = (latents.abs().amax(-1, keepdim=True) / levels[-1]).clamp_min(1e-6)
    codes = torch.bucketize((latents / scale).contiguous(), edges)
    return (levels[codes] * scale - latents).square().mean(0)


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


def sampled_latents(factor: LatentFactors, unit: Unit, sample: Tensor | None) -> Tensor:
    """Sampled latents (tokens, R), float64."""
    generator = torch.Generator().manual_seed(0)
    if sample is None:
        variance = channel_variances(factor, unit)
        normal = torch.randn(4096, len(variance), generator=generator, dtype=torch.float64)
        return normal * variance.sqrt()
    latents = (sample.double() - factor.mean) @ factor.encoder.T
    if factor.frequencies is not None:
        # Stored keys are rotated by their position, which meets every phase in a long text.
        pairs = torch.view_as_complex(latents[:, : factor.key_rank].unflatten(-1, (-1, 2)))
        phases = 2 * torch.pi * torch.rand(pairs.shape, generator=generator, dtype=torch.float64)
        phases = phases * (factor.frequencies >= 0)
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(phases), phases))
        latents = torch.cat([turned.flatten(-2), latents[:, factor.key_rank :]], dim=-1)
    return latents
