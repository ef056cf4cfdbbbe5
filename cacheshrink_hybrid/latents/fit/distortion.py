"""What it costs to store a latent channel in few bits, found on samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ...codecs import RowFormat
from ...codecs.gain_search import rounded_levels
from ...methods import LATENT_KINDS
from .factors import LatentFactors, Unit
from .rotate import in_blocks, sampled_places


def channel_costs(factor: LatentFactors, unit: Unit) -> Tensor:
    """lambda of each channel: what a squared error of one costs per layer, (R,)."""
    return torch.einsum("nr,nm,mr->r", factor.up, unit.metric, factor.up)


def channel_variances(factor: LatentFactors, unit: Unit) -> Tensor:
    """Variance of each channel, (R,); one, or less for channels that hardly vary."""
    variance = torch.einsum("rn,nm,rm->r", factor.encoder, unit.covariance, factor.encoder)
    return variance.clamp_min(0.0)


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
    centred = sample.float() - factor.mean.float()
    if LATENT_KINDS[factor.method].stores_rotated:
        centred = in_blocks(centred, unit.keys, sampled_places(len(centred), unit.keys))
    return centred @ factor.encoder.T.float()
