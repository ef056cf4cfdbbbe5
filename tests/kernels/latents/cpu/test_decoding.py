"""Levels are looked up 16 at a time as they are by pairs, and nothing before them is touched."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from cacheshrink_hybrid.kernels.latents.cpu.decoding import lookup_decoder, pairs_decoder
from cacheshrink_hybrid.kernels.latents.cpu.lookup import LANES
from cacheshrink_hybrid.kernels.latents.cpu.row_view import row_tables
from cacheshrink_hybrid.kernels.latents.cpu.vectors import has_wide_registers

ROWS, BEFORE = 5, 3


@pytest.mark.skipif(not has_wide_registers(), reason="this CPU permutes fewer numbers at once")
@pytest.mark.parametrize(("low", "high"), [(1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2)])
def test_both_ways_to_look_up(low: int, high: int) -> None:
    """Of runs that end within 16 channels, up to the last byte of the arena."""
    decoders = lookup_decoder(low, high), pairs_decoder(low, high)
    generator = np.random.default_rng(low + high)
    for channels in (1, 7, 16, 18, 40):
        first_high = (channels * low + 7) // 8
        row_bytes = first_high + (channels * high + 7) // 8
        arena = generator.integers(0, 256, ROWS * row_bytes).astype(np.uint8)
        places = (np.arange(ROWS) * row_bytes).astype(np.uint64)
        gains = generator.random(ROWS).astype(np.float32)
        found = []
        for decode in decoders:
            out = np.full((ROWS, BEFORE + channels + 2 * LANES), 7, np.float32)
            decode(arena, places, ROWS, gains, 0, first_high, BEFORE, channels, row_tables(), out)
            assert (out[:, :BEFORE] == 7).all() and (out[:, -LANES:] == 7).all()
            found.append(out[:, BEFORE : BEFORE + channels])
        assert np.array_equal(*found)
