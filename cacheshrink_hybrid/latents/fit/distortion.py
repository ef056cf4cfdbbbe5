"""What it costs to store a latent channel in few bits, found on samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ...codecs import RowFormat
from ...codecs.gain_search import rounded_levels
from .factors import LatentFactors, Unit, over_pairs


def channel_costs(factor: LatentFactors, unit: Unit) -> Tensor:
    """lambda of each channel: what a squared error of one costs per layer, (R,)."""
    costs = torch.einsum("nr,nm,mr->r", factor.up, unit.metric, factor.up)
    return over_pairs(costs, factor.frequencies)


def channel_variances(factor: LatentFactors, unit: Unit) -> Tensor:
    """Variance of each channel, (R,); one, or less for channels that hardly vary."""
    variance = torch.einsum("rn,nm,rm->r", factor.encoder, unit.covariance, factor.encoder)
    return over_pairs(variance.clamp_min(0.0), factor.frequencies)


def measured_distortion(
    latents: Tensor, bits: int, format: RowFormat, gains: Tensor | None
) -> Tensor:
    """Mean squared error of each channel at a width, (R,), float64.

    Args:
        latents: (tokens, R), float32.
        gains: of the tokens' rows, (tokens, 1); None for rows without, where channels are clipped
            to their levels.
    """
    kind = format.kind(bits)
    if not kind.coded:
        rounded = latents.to(kind.dtype).float()
    elif gains is None:
        rounded = rounded_levels(latents, bits)
    else:
        rounded = rounded_levels(latents / gains, bits) * gains
    return (rounded - latents).square().mean(0, dtype=torch.float64)


def sampled_latents(factor: LatentFactors, unit: Unit, sample: Tensor | None) -> Tensor:
    """Sampled latents (tokens, R), float32."""
    generator = torch.Generator().manual_seed(0)
    if sample is None:
        variance = channel_variances(factor, unit)
        return torch.randn(4096, len(variance), generator=generator) * variance.sqrt().float()
    latents = (sample.float() - factor.mean.float()) @ factor.encoder.T.float()
    if factor.frequencies is not None:
        # Stored keys are rotated by their position, which meets every phase in a long text.
        pairs = torch.view_as_complex(latents[:, : factor.key_rank].unflatten(-1, (-1, 2)))
        phases = 2 * torch.pi * torch.rand(pairs.shape, generator=generator)
        phases = phases * (factor.frequencies >= 0)
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(phases), phases))
        latents = torch.cat([turned.flatten(-2), latents[:, factor.key_rank :]], dim=-1)
    return latents
