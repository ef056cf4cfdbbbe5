"""Every CPU gets the code that its registers are made for; what this one cannot run is compiled."""

from __future__ import annotations

import pytest

from tests.subprocesses import run_python

pytest.importorskip("numba")

from numba import config

from cacheshrink_hybrid.kernels.latents.cpu.registers import Lookup, cpu_features, registers_of

AVX2 = {"sse2", "avx", "avx2", "fma"}
NARROW = ",".join(f"+{name}" for name in sorted(AVX2 | {"ssse3", "sse4.1", "sse4.2"}))
COMPILED = """
import numpy as np
from numba import float32, int64, uint8, uint64, typeof
from cacheshrink_hybrid.kernels.host_code import compiled
from cacheshrink_hybrid.kernels.latents.cpu.decoding import DECODERS
from cacheshrink_hybrid.kernels.latents.cpu.products import mix
from cacheshrink_hybrid.kernels.latents.cpu.registers import REGISTERS
from cacheshrink_hybrid.kernels.latents.cpu.tables import row_tables

decode = DECODERS[REGISTERS.lookup](4, 2)

@compiled
def both(arena, places, gains, tables, tile, weights, sums):
    decode(arena, places, 3, gains, 0, 8, 0, 16, tables, tile)
    mix(weights, tile, 3, 0, sums)

arena, places = np.arange(36, dtype=np.uint8), np.arange(3, dtype=np.uint64) * np.uint64(12)
gains, tile = np.ones(3, np.float32), np.zeros((3, 64), np.float32)
weights, sums = np.ones((2, 3), np.float32), np.zeros((2, 64), np.float32)
given = arena, places, gains, row_tables(), tile, weights, sums
both.compile(tuple(typeof(x) for x in given))
[code] = both.inspect_asm().values()
print(REGISTERS.lookup.name, REGISTERS.lanes, "zmm" in code, "vpermi2ps" in code, "ymm" in code)
"""
RUN = """
both(*given)
lows, highs = arena.reshape(3, 12)[:, :8], arena.reshape(3, 12)[:, 8:]
lows = lows.repeat(2, axis=1) >> np.tile([0, 4], 8) & 15
highs = highs.repeat(4, axis=1) >> np.tile([0, 2, 4, 6], 4) & 3
due = row_tables().levels[5, lows + 16 * highs].sum(axis=0)
print(np.abs(sums[:, :16] - due).max() < 1e-5)
"""

TILES = """
import numpy as np
from numba import int64, typeof
from cacheshrink_hybrid.kernels.host_code import compiled
from cacheshrink_hybrid.kernels.latents.cpu.tiles import COLUMNS, ROWS, mixing_tile, product_tile

product, mixing = product_tile(ROWS, COLUMNS), mixing_tile(ROWS, COLUMNS)

@compiled
def multiply(left, right, width, out):
    product(left, 0, right, 0, width, out)

@compiled
def add(weights, values, count, sums):
    mixing(weights, 0, values, count, 0, sums, 0)

matrix = typeof(np.zeros((4, 64), np.float32))
for function in multiply, add:
    function.compile((matrix, matrix, int64, matrix))
    [code] = function.inspect_asm().values()
    loops = [block for block in code.split("\\n.LBB") if block.count("vfmadd") >= ROWS * COLUMNS]
    whole = [block for block in loops if "vmaskmov" not in block]
    print(len(whole) > 0, any("(%rsp)" in line and "ymm" in line for line in whole[0].splitlines()))
"""


@pytest.mark.parametrize(
    ("features", "lookup", "lanes"),
    [
        (AVX2 | {"avx512f"}, Lookup.WIDE, 16),
        (AVX2, Lookup.NARROW, 8),
        (AVX2 - {"fma"}, Lookup.PAIRS, 8),
        ({"neon"}, Lookup.PAIRS, 8),
        (set(), Lookup.PAIRS, 8),
    ],
)
def test_what_a_cpu_gets(features: set[str], lookup: Lookup, lanes: int) -> None:
    found = registers_of(features)
    assert (found.lookup, found.lanes) == (lookup, lanes)


def test_features_are_those_that_numba_compiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,-avx512f,+fma", raising=False)
    assert cpu_features() == {"avx2", "fma"}
    monkeypatch.setattr(config, "CPU_FEATURES", "", raising=False)
    assert cpu_features() == set()
    monkeypatch.setattr(config, "CPU_FEATURES", None, raising=False)
    monkeypatch.setattr(config, "ENABLE_AVX", 0, raising=False)
    assert not any(name.startswith("avx") for name in cpu_features())


@pytest.mark.slow(group="host code")
def test_code_for_wide_registers() -> None:
    """Compiled, not run, for a CPU that need not be this one."""
    features = "+avx,+avx2,+fma,+avx512f,+avx512vl,+avx512bw,+avx512dq"
    done = run_python("-c", COMPILED, NUMBA_CPU_NAME="znver4", NUMBA_CPU_FEATURES=features)
    assert done.stdout == "WIDE 16 True True True\n", done.stderr


@pytest.mark.slow(group="host code")
def test_code_for_any_cpu() -> None:
    """Compiled for one that is known to have nothing, which this one can run too."""
    done = run_python("-c", COMPILED + RUN, NUMBA_CPU_NAME="generic")
    assert done.stdout == "PAIRS 8 False False False\nTrue\n", done.stderr


@pytest.mark.slow(group="host code")
def test_sums_stay_in_narrow_registers() -> None:
    """The loop of a tile of the largest size keeps nothing on the stack."""
    done = run_python("-c", TILES, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=NARROW)
    assert done.stdout == "True False\n" * 2, done.stderr


@pytest.mark.slow(group="host code")
@pytest.mark.skipif(
    not cpu_features() >= AVX2, reason="this CPU does not permute registers of 8 numbers"
)
def test_code_for_narrow_registers() -> None:
    """Also on a CPU with wide ones."""
    done = run_python("-c", COMPILED + RUN, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=NARROW)
    assert done.stdout == "NARROW 8 False False True\nTrue\n", done.stderr
