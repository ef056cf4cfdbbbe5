"""What compiled functions look up: levels and gains, to decode and to code."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ....codecs import levels
from ....codecs.gains import gain_table
from ....codecs.row_layout import PLANES, Kind


class Tables(NamedTuple):
    """What is looked up: levels of 1 to 6 bits (6, 64), the bytes of those of 4 to 6 bits, of each
    16 levels the lowest ones first (3, 256), levels of two neighbours (5460, 2), numbers of the
    bytes of e4m3 and e5m2 (2, 256), step and first level of 8 uniform bits (2,), and gains
    (256,)."""

    levels: NDArray
    level_bytes: NDArray
    pairs: NDArray
    byte_floats: NDArray
    uniform: NDArray
    gains: NDArray


@cache
def row_tables() -> Tables:
    pairs = []
    for bits, planes in PLANES.items():
        low = planes[0]
        index, level = torch.arange(4**bits), levels.levels_of(bits).float()
        lows, highs = index % 4**low, index >> (2 * low)
        codes = [
            (lows >> low * k) % 2**low + ((highs >> (bits - low) * k) % 2 ** (bits - low) << low)
            for k in range(2)
        ]
        pairs.append(level[torch.stack(codes, dim=-1)])
    every_byte = torch.arange(256, dtype=torch.uint8)
    floats = [every_byte.view(kind.dtype).float() for kind in (Kind.E4M3, Kind.E5M2)]
    uniform = levels.UNIFORM_STEP, float(levels.uniform_levels()[0])
    single = np.zeros((len(PLANES), 2 ** max(PLANES)), np.float32)
    for row, bits in zip(single, PLANES, strict=True):
        row[: 2**bits] = levels.levels_of(bits)
    return Tables(
        single,
        _bytes_apart(single[3:]),
        torch.cat(pairs).numpy(),
        torch.stack(floats).numpy(),
        np.array(uniform, np.float32),
        gain_table(torch.device("cpu")).numpy(),
    )


def _bytes_apart(found: NDArray) -> NDArray:
    """Levels (n, 64) as bytes (n, 256): of each 16 the lowest ones, then those above them."""
    of_levels = found.reshape(-1, 4, 16, 1).view(np.uint8)
    return np.ascontiguousarray(of_levels.swapaxes(2, 3)).reshape(len(found), -1)


class CodingTables(NamedTuple):
    """What is looked up to code: of the step that a number lies in, by width, the code (6, 4096)
    uint8 and its level (6, 4096); and gains (256,)."""

    step_codes: NDArray
    step_levels: NDArray
    gains: NDArray


@cache
def coding_tables() -> CodingTables:
    codes = [levels.step_codes(bits) for bits in PLANES]
    found = [levels.levels_of(b).float()[c.long()] for b, c in zip(PLANES, codes, strict=True)]
    return CodingTables(
        torch.stack(codes).numpy(),
        torch.stack(found).numpy(),
        gain_table(torch.device("cpu")).numpy(),
    )
