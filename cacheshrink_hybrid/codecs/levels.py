"""Reproduction levels for channels of unit variance.

1 to 6 bits use the Lloyd-Max quantiser of the standard normal; 8 bits are uniform, which loses
nothing at that resolution and decodes by one multiplication.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .gains import gain_table
from .tables import table

LLOYD_MAX = {
    1: (0.7978845608028654,),
    2: (0.45278003463649213, 1.5104176084990963),
    3: (0.24509417894422197, 0.7560052812058772, 1.3439092785049997, 2.151945704536986),
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
    5: (
        0.06588965977082223,
        0.19805182966943202,
        0.33137830576010924,
        0.4666995229766794,
        0.6049336240094311,
        0.7471357036878158,
        0.8945651173883697,
        1.0487833199231864,
        1.2118043806092569,
        1.386340339586604,
        1.5762280786121772,
        1.7872332177032377,
        2.028728399395476,
        2.3177394041947137,
        2.6911195773766194,
        3.260732493401576,
    ),
    6: (
        0.03340950637010079,
        0.10027828930388748,
        0.1672969033689962,
        0.23456698533601342,
        0.3021928463716992,
        0.37028264525894233,
        0.43894967165864274,
        0.5083137808979941,
        0.5785030305188028,
        0.6496555810635362,
        0.7219219405696755,
        0.7954676558408581,
        0.8704765865441054,
        0.9471549447432824,
        1.0257363490773153,
        1.1064882395373024,
        1.1897201418608268,
        1.275794486433708,
        1.3651410198101512,
        1.458276374697732,
        1.555831224705064,
        1.65858890042377,
        1.7675418829911278,
        1.8839772405223534,
        2.0096110425936002,
        2.1468102170557892,
        2.298981209760294,
        2.471304797618259,
        2.672273835255182,
        2.917406790722772,
        3.240437055012127,
        3.7441012708948236,
    ),
}
"""Positive half of the levels by width: the fixed point of Lloyd's iteration, where each level is
the mean of x between the midpoints to its neighbours. Reference: Max, Quantizing for minimum
distortion, 1960."""
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


EDGE_STEPS = 512
EDGE_REACH = 4.0
"""Thresholds lie at multiples of 1 / 512 between -4 and 4, so that a table finds the level of a
number by the step that it lies in. That moves them by a sixtieth of a cell at most."""
NUM_STEPS = int(2 * EDGE_REACH * EDGE_STEPS)


@table
def edges_of(bits: int) -> Tensor:
    """Decision thresholds between neighbouring levels of 1 to 6 bits, (2**bits - 1,), float64: a
    number at a threshold belongs to the level above."""
    levels = lloyd_max_levels(bits)
    return (0.5 * (levels[1:] + levels[:-1]) * EDGE_STEPS).round() / EDGE_STEPS


@table
def step_codes(bits: int) -> Tensor:
    """The code of a number by the step that it lies in, from -4 up, uint8, (4096,)."""
    steps = torch.arange(-EDGE_REACH * EDGE_STEPS, EDGE_REACH * EDGE_STEPS, dtype=torch.float64)
    return torch.bucketize(steps / EDGE_STEPS, edges_of(bits), right=True).to(torch.uint8)


def normal_distortion(bits: int) -> float:
    """E(x - Q(x))^2 of a standard normal x: 1 - E Q(x)^2 at the fixed point of Lloyd's iteration,
    and of evenly spaced levels a twelfth of the squared step."""
    if bits == UNIFORM_BITS:
        return UNIFORM_STEP**2 / 12
    positive = LLOYD_MAX[bits]
    edges = [0.0, *(0.5 * (low + high) for low, high in pairwise(positive)), math.inf]
    shares = [math.erf(high / 2**0.5) - math.erf(low / 2**0.5) for low, high in pairwise(edges)]
    return 1 - sum(level**2 * share for level, share in zip(positive, shares, strict=True))


FIRST_GAIN = 2**7 - 2
"""Where gains begin in `row_tables`."""


def first_level(bits: int) -> int:
    """Where the levels of a width, 1 to 6, begin in `row_tables`."""
    return 2**bits - 2


@table
def row_tables(device: torch.device) -> Tensor:
    """What kernels look up: levels of 1 to 6 bits, one width after the other, each ascending, and
    from `FIRST_GAIN` on the gain of each byte (`gains`), (382,) float32."""
    levels = torch.cat([lloyd_max_levels(bits) for bits in LLOYD_MAX])
    return torch.cat([levels.float(), gain_table(torch.device("cpu"))]).to(device)


def first_step(bits: int) -> int:
    """Where the steps of a width, 1 to 6, begin in `step_tables`."""
    return (bits - 1) * NUM_STEPS


@table
def step_tables(device: torch.device) -> Tensor:
    """What kernels that code look up: `step_codes` of 1 to 6 bits, one width after the other,
    (6 * 4096,) uint8."""
    return torch.cat([step_codes(bits) for bits in LLOYD_MAX]).to(device)


@table
def byte_codes(bits: int) -> Tensor:
    """Codes of the 8 / bits channels that each byte of a plane holds, lowest bits first, uint8,
    (256, 8 / bits)."""
    shifts = torch.arange(0, 8, bits)
    return ((torch.arange(256)[:, None] >> shifts) & (2**bits - 1)).to(torch.uint8)
