"""What finished factors lose on text that they were not fitted to."""

from __future__ import annotations

import torch
from torch import Tensor

from ...codecs import RowCodec
from .bits import CodedFactors
from .distortion import sampled_latents
from .factors import Unit
from .statistics import HeldOutSamples


def held_out_loss(result: CodedFactors, unit: Unit, samples: HeldOutSamples, coded: bool) -> float:
    """Expected loss per layer, in the metric's units, as `LatentFactors.loss` has it for the text
    of fitting: of the directions left out, and of coding the others.

    E (g . e)^2 / 2 over all pairs of an error e and a gradient g of the samples; without gradients
    an error costs e^T M e with the unit's metric M.

    Args:
        coded: whether latents are stored as rows of codes.
    """
    factor = result.factors
    centered = samples.vectors.double() - factor.mean
    left_out = centered - centered @ factor.encoder.T @ factor.up.T
    loss = _mean_cost(left_out, unit, samples)
    if coded:
        codec = RowCodec(result.runs, result.row_format)
        latents = sampled_latents(factor, unit, samples.vectors)
        rows = codec.encode(latents, factor.costs)
        distortion = (
            (codec.decode(rows, torch.float32) - latents).square().mean(0, dtype=torch.float64)
        )
        loss += float(_channel_costs(factor.up, unit, samples) @ distortion)
    return loss


def _mean_cost(errors: Tensor, unit: Unit, samples: HeldOutSamples) -> float:
    """Mean cost of errors (n, 2*J*D)."""
    if samples.gradients is None:
        return float(torch.einsum("tn,nm,tm->", errors, unit.metric, errors)) / len(errors)
    gradients = samples.gradients.double()
    pairs = len(errors) * len(gradients)
    return 0.5 * float((gradients @ errors.T).square().sum()) / pairs


def _channel_costs(up: Tensor, unit: Unit, samples: HeldOutSamples) -> Tensor:
    """Cost of a unit error in each channel, (R,)."""
    if samples.gradients is None:
        return torch.einsum("nr,nm,mr->r", up, unit.metric, up)
    return 0.5 * (samples.gradients.double() @ up).square().mean(0)
