"""Levels are looked up many at a time as they are by pairs, and nothing before them is touched."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from cacheshrink_hybrid.kernels.latents.cpu.decoding import DECODERS, pairs_decoder
from cacheshrink_hybrid.kernels.latents.cpu.registers import Lookup, cpu_features, registers_of
from cacheshrink_hybrid.kernels.latents.cpu.tables import row_tables

ROWS, BEFORE, BEHIND = 5, 3, 15
RUNS_HERE = {
    Lookup.WIDE: registers_of(cpu_features()).lookup is Lookup.WIDE,
    Lookup.NARROW: registers_of(cpu_features() - {"avx512f"}).lookup is Lookup.NARROW,
}


@pytest.mark.parametrize("lookup", RUNS_HERE)
@pytest.mark.parametrize(("low", "high"), [(1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2)])
def test_all_ways_to_look_up(lookup: Lookup, low: int, high: int) -> None:
    """Of runs that end within 16 or 32 channels, up to the last byte of the arena."""
    if not RUNS_HERE[lookup]:
        pytest.skip("this CPU permutes fewer numbers at once")
    decoders = DECODERS[lookup](low, high), pairs_decoder(low, high)
    generator = np.random.default_rng(low + high)
    for channels in (1, 7, 16, 18, 32, 40, 48, 95):
        first_high = (channels * low + 7) // 8
        row_bytes = first_high + (channels * high + 7) // 8
        arena = generator.integers(0, 256, ROWS * row_bytes).astype(np.uint8)
        places = (np.arange(ROWS) * row_bytes).astype(np.uint64)
        gains = generator.random(ROWS).astype(np.float32)
        found = []
        for decode in decoders:
            out = np.full((ROWS, BEFORE + channels + BEHIND + 32), 7, np.float32)
            decode(arena, places, ROWS, gains, 0, first_high, BEFORE, channels, row_tables(), out)
            assert (out[:, :BEFORE] == 7).all() and (
                out[:, BEFORE + channels + BEHIND :] == 7
            ).all()
            found.append(out[:, BEFORE : BEFORE + channels])
        one, other = found
        assert np.array_equal(one, other)
