"""The gain of a row: what its few-bit channels are divided by before they are coded.

One byte per row, on a grid of eighths of an octave, 2^(-8) to 2^15. Channels have unit variance
over a text, but single tokens are smaller or larger throughout, or reach far in a few channels: the
gain that loses least is found for each token by the weighted error of its row. Where it lies is
told by a formula, convex in the gain g,

    A g^2 + sum over channels of weight * max(0, |x| - L g)^2,    A = sum of weight * distortion,

of what lies within the levels, and of what lies beyond the outermost one, L; neighbours of its
least value on the grid are then tried.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tables import table

STEPS = 8
"""Gains per octave."""
UNIT_CODE = 8 * STEPS
"""The code of a gain of 1."""
LARGEST_CODE = UNIT_CODE + 15 * STEPS
"""Of 2^15, which products with probabilities in float16 stand."""
LOST = 255
"""In the place of a gain: the latent was not finite, and reads as NaN in all channels."""
COARSE = 4
"""Codes between the gains at which the formula is looked at."""
OCTAVES = 8
"""Down to so many octaves below a gain that leaves nothing beyond the levels, the formula is looked
at."""
TRIED = tuple(range(-2, 8))
"""Codes around the formula's least value that are tried by coding the row: larger gains above all,
which lose less than the formula says, because inner levels lie closer together than outer ones."""


@table
def gain_table(device: torch.device) -> Tensor:
    """The gain of each byte, (256,) float32; NaN for lost tokens, and for bytes that are none."""
    codes = torch.arange(256, dtype=torch.float64)
    gains = torch.exp2((codes - UNIT_CODE) / STEPS)
    gains[LARGEST_CODE + 1 :] = torch.nan
    return gains.to(device, torch.float32)
