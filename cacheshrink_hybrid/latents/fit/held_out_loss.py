"""What finished factors lose on text that they were not fitted to."""

from __future__ import annotations

import torch
from torch import Tensor

from ...codecs import RowCodec
from ...methods import LATENT_KINDS
from .bits import CodedFactors
from .decoupled import split_errors
from .distortion import channel_costs, sampled_latents
from .factors import LatentFactors, Unit
from .rotate import in_blocks, sampled_places, seen_in_blocks
from .statistics import HeldOutSamples


def held_out_loss(result: CodedFactors, unit: Unit, samples: HeldOutSamples, coded: bool) -> float:
    """Expected loss per layer, in the metric's units, as `LatentFactors.loss` has it for the text
    of fitting: of the directions left out, and of coding the others.

    E (g . e)^2 / 2 over all pairs of an error e and a gradient g of the samples; without gradients
    an error costs e^T M e with the unit's metric M.

    Args:
        unit: the module, with the moments of its keys and values as they are.
        coded: whether latents are stored as rows of codes.
    """
    factor = result.factors
    if factor.rotary_frequencies:
        return _mean_cost(split_errors(factor, samples.vectors.double()), unit, samples)
    turns = LATENT_KINDS[factor.method].stores_rotated
    centered = samples.vectors.double() - factor.mean
    places = sampled_places(len(centered), unit.keys) if turns else None
    seen = centered if places is None else in_blocks(centered, unit.keys, places)
    left_out = seen - seen @ factor.encoder.T @ factor.up.T
    if places is not None:
        left_out = in_blocks(left_out, unit.keys, places, back=True)
    loss = _mean_cost(left_out, unit, samples)
    if coded:
        codec = RowCodec(result.runs, result.row_format)
        latents = sampled_latents(factor, unit, samples.vectors)
        rows = codec.encode(latents, factor.costs)
        distortion = (
            (codec.decode(rows, torch.float32) - latents).square().mean(0, dtype=torch.float64)
        )
        loss += float(_channel_costs(factor, unit, samples) @ distortion)
    return loss


def _mean_cost(errors: Tensor, unit: Unit, samples: HeldOutSamples) -> float:
    """Mean cost of errors (n, 2*J*D), or (n, 3*J*D) where keys are split."""
    if samples.gradients is None:
        return float(torch.einsum("tn,nm,tm->", errors, unit.metric, errors)) / len(errors)
    gradients = samples.gradients.double()
    pairs = len(errors) * len(gradients)
    return 0.5 * float((gradients @ errors.T).square().sum()) / pairs


def _channel_costs(factor: LatentFactors, unit: Unit, samples: HeldOutSamples) -> Tensor:
    """Cost of a unit error in each channel, (R,)."""
    turns = LATENT_KINDS[factor.method].stores_rotated
    if samples.gradients is None:
        return channel_costs(factor, seen_in_blocks(unit) if turns else unit)
    gradients = samples.gradients.double()
    if turns:
        places = sampled_places(len(gradients), unit.keys)
        gradients = in_blocks(gradients, unit.keys, places)
    return 0.5 * (gradients @ factor.up).square().mean(0)
