"""Reproduction levels for channels of unit variance.

4 and 2 bits use the Lloyd-Max quantiser of the standard normal; 8 bits are uniform, which loses
nothing at that resolution and decodes by one multiplication.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .tables import table

LLOYD_MAX = {
    2: (0.45278003463649213, 1.5104176084990963),
    4: (
        0.12839502985114726,
        0.38804829949029185,
        0.656759118532467,
        0.9423404564869655,
        1.2562311973471827,
        1.618046386021888,
        2.0690172265313898,
        2.7325895709951777,
    ),
}
"""Positive half of the levels by width: the fixed point of Lloyd's iteration, where each level is
the mean of x between the midpoints to its neighbours. Reference: Max, Quantizing for minimum
distortion, 1960."""
LLOYD_MAX_BITS = tuple(LLOYD_MAX)
UNIFORM_BITS = 8
UNIFORM_CLIP = 4.5
"""Largest magnitude, in standard deviations, that 8 bits represent."""
UNIFORM_STEP = 2 * UNIFORM_CLIP / 2**UNIFORM_BITS


@table
def lloyd_max_levels(bits: int) -> Tensor:
    """The 2**bits levels that minimise E(x - Q(x))^2 of a standard normal x, ascending, float64."""
    positive = torch.tensor(LLOYD_MAX[bits], dtype=torch.float64)
    return torch.cat([-positive.flip(0), positive])


@table
def uniform_levels() -> Tensor:
    """The 256 levels of 8 bits, ascending, float64: spaced evenly up to the clip on both sides."""
    codes = torch.arange(2**UNIFORM_BITS, dtype=torch.float64)
    return (codes + 0.5) * UNIFORM_STEP - UNIFORM_CLIP


@table
def levels_of(bits: int) -> Tensor:
    """Levels of a width, ascending, (2**bits,), float64."""
    return uniform_levels() if bits == UNIFORM_BITS else lloyd_max_levels(bits)


def outermost_level(bits: int) -> float:
    """The largest level of a width."""
    if bits == UNIFORM_BITS:
        return UNIFORM_CLIP - UNIFORM_STEP / 2
    return LLOYD_MAX[bits][-1]


@table
def edges_of(bits: int) -> Tensor:
    """Decision thresholds between neighbouring levels, (2**bits - 1,), float64."""
    levels = levels_of(bits)
    return 0.5 * (levels[1:] + levels[:-1])


HEAD_LEVELS = 159
HEAD_GAINS = 6
HEAD_ESCAPED_LEVELS = 16
HEAD_NAN = 255
"""A head byte has 159 codes for its channel at gain 1, 16 for each of the gains 2, 4, .. 64, and
one for a token whose latent is not finite. The levels lie evenly between -4.5 and 4.5, times the
gain."""


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


FIRST_LEVELS2 = 2**4


@table
def level_tables(device: torch.device) -> Tensor:
    """Levels of 4 bits, and from `FIRST_LEVELS2` on those of 2 bits, ascending, (20,) float32."""
    return torch.cat([lloyd_max_levels(4), lloyd_max_levels(2)]).to(device, torch.float32)


@table
def byte_table(bits: int) -> Tensor:
    """Levels of the 8 / bits channels that each byte holds, lowest bits first, float32,
    (256, 8 / bits)."""
    shifts = torch.arange(0, 8, bits)
    codes = (torch.arange(256)[:, None] >> shifts) & (2**bits - 1)
    return levels_of(bits)[codes].float()
