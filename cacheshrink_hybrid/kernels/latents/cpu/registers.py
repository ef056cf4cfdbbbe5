"""The registers of the CPU that functions are compiled for: the one place that decides which CPU
gets which code.

| instructions | numbers of a vector | sums of a tile, in vectors | levels are looked up |
| --- | --- | --- | --- |
| AVX-512 | 16 | 4 x 4 | 16 by permuting a register (`wide_lookup`) |
| AVX2 and FMA, no AVX-512 | 8 | 3 x 4 | 16 by permuting registers of 8 (`narrow_lookup`) |
| others | 8, which LLVM takes apart | 3 x 4 | two in a table (`pairs_decoder`) |

A tile leaves registers for what is multiplied: of 32 with AVX-512, of 16 with AVX2.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from numba import config
from numba.core.codegen import get_host_cpu_features


class Lookup(Enum):
    """How levels are looked up by their codes."""

    WIDE = "16 numbers permuted by one instruction"
    NARROW = "8 numbers permuted by one instruction"
    PAIRS = "a table of two neighbours"


class Registers(NamedTuple):
    """What a CPU gets.

    Attributes:
        lanes: float32 numbers of a vector.
        rows, columns: of vectors of sums in the largest tile of a product.
        lookup: of levels.
    """

    lanes: int
    rows: int
    columns: int
    lookup: Lookup


def registers_of(features: set[str]) -> Registers:
    """What a CPU with these instructions gets, named as LLVM does."""
    if "avx512f" in features:
        return Registers(lanes=16, rows=4, columns=4, lookup=Lookup.WIDE)
    narrow = {"avx2", "fma"} <= features
    return Registers(8, rows=3, columns=4, lookup=Lookup.NARROW if narrow else Lookup.PAIRS)


def cpu_features() -> set[str]:
    """Instructions that numba compiles for: those of this CPU, without AVX where `NUMBA_ENABLE_AVX`
    is 0, or what `NUMBA_CPU_FEATURES` says."""
    settings: Any = config
    given = settings.CPU_FEATURES
    names = (get_host_cpu_features() if given is None else given).split(",")
    return {name[1:] for name in names if name.startswith("+")}


REGISTERS = registers_of(cpu_features())
"""Of the CPU that functions are compiled for."""
