"""Reproduction levels for channels of unit variance.

4 and 2 bits use the Lloyd-Max quantiser of the standard normal; 8 bits are uniform, which loses
nothing at that resolution and decodes by one multiplication.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

LLOYD_MAX_BITS = (2, 4)
UNIFORM_BITS = 8
UNIFORM_CLIP = 4.5
"""Largest magnitude, in standard deviations, that 8 bits represent."""


@cache
def lloyd_max_levels(bits: int) -> Tensor:
    """The 2**bits levels that minimise E(x - Q(x))^2 of a standard normal x, ascending, float64.

    Fixed point of Lloyd's iteration: each level is the mean of x between the midpoints to its
    neighbours. Reference: Max, Quantizing for minimum distortion, 1960.
    """
    num_levels = 2**bits
    ranks = (torch.arange(num_levels, dtype=torch.float64) + 0.5) / num_levels
    levels = math.sqrt(3.0) * torch.special.ndtri(ranks)  # optimal for many levels
    infinity = torch.tensor([math.inf], dtype=torch.float64)
    for _ in range(2000):
        edges = torch.cat([-infinity, 0.5 * (levels[1:] + levels[:-1]), infinity])
        density = torch.exp(-0.5 * edges**2) / math.sqrt(2 * math.pi)
        mass = torch.special.ndtr(edges).diff()
        levels = -density.diff() / mass
    return 0.5 * (levels - levels.flip(0))  # exactly symmetric


@cache
def uniform_levels() -> Tensor:
    """The 256 levels of 8 bits, ascending, float64: spaced evenly up to the clip on both sides."""
    step = 2 * UNIFORM_CLIP / 2**UNIFORM_BITS
    return (torch.arange(2**UNIFORM_BITS, dtype=torch.float64) + 0.5) * step - UNIFORM_CLIP


@cache
def levels_of(bits: int) -> Tensor:
    """Levels of a width, ascending, (2**bits,), float64."""
    return uniform_levels() if bits == UNIFORM_BITS else lloyd_max_levels(bits)


@cache
def edges_of(bits: int) -> Tensor:
    """Decision thresholds between neighbouring levels, (2**bits - 1,), float64."""
    levels = levels_of(bits)
    return 0.5 * (levels[1:] + levels[:-1])


HEAD_LEVELS = 159
HEAD_GAINS = 6
HEAD_ESCAPED_LEVELS = 16
HEAD_NAN = 255
"""A head byte has 159 codes for its channel at gain 1, 16 for each of the gains 2, 4, .. 64, and
one for a token whose latent is not finite."""


@cache
def head_tables() -> tuple[Tensor, Tensor]:
    """Value and gain of each of the 256 head bytes: (values, gains), float64.

    Values are already multiplied by their gain.
    """
    step = 2 * UNIFORM_CLIP / HEAD_LEVELS
    ordinary = (torch.arange(HEAD_LEVELS, dtype=torch.float64) + 0.5) * step - UNIFORM_CLIP
    coarse_step = 2 * UNIFORM_CLIP / HEAD_ESCAPED_LEVELS
    coarse = (torch.arange(HEAD_ESCAPED_LEVELS, dtype=torch.float64) + 0.5) * coarse_step
    coarse = coarse - UNIFORM_CLIP
    gains = [2.0 ** (exponent + 1) for exponent in range(HEAD_GAINS)]
    nan = torch.tensor([math.nan], dtype=torch.float64)
    values = torch.cat([ordinary, *(gain * coarse for gain in gains), nan])
    all_gains = [1.0] * HEAD_LEVELS + [g for g in gains for _ in coarse] + [math.nan]
    return values, torch.tensor(all_gains, dtype=torch.float64)


@cache
def byte_table(bits: int) -> Tensor:
    """Levels of the 8 / bits channels that each byte holds, lowest bits first, float32,
    (256, 8 / bits)."""
    shifts = torch.arange(0, 8, bits)
    codes = (torch.arange(256)[:, None] >> shifts) & (2**bits - 1)
    return levels_of(bits)[codes].float()
