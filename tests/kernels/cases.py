"""The row layouts that every kernel on latents is tested with, and what is combined with them."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from cacheshrink_hybrid.kernels.latents.row_layout import Kind, RowLayout

LAYOUTS = {
    "float32": RowLayout.uniform(48, torch.float32, alignment=16),
    "float16": RowLayout.uniform(48, torch.float16, alignment=16),
    "bfloat16": RowLayout.uniform(48, torch.bfloat16, alignment=16),
    "e4m3": RowLayout.uniform(48, torch.float8_e4m3fn, alignment=16),
    "e5m2": RowLayout.uniform(48, torch.float8_e5m2, alignment=16),
    "8": RowLayout.of_bits([(48, 8)], alignment=16),
    "4": RowLayout.of_bits([(48, 4)], alignment=16),
    "mixed": RowLayout.of_bits([(16, 16), (48, 8), (32, 4), (16, 2)], alignment=16),
    "floats": RowLayout.of_runs(
        [
            (16, Kind.FLOAT32),
            (16, Kind.FLOAT16),
            (16, Kind.BFLOAT16),
            (16, Kind.E4M3),
            (16, Kind.E5M2),
        ],
        alignment=16,
    ),
    # Narrow: runs of 8, odd addresses, a head byte behind the runs.
    "narrow": RowLayout.of_bits([(8, 4), (4, 2), (8, 16), (8, 4)]),
    "plain": RowLayout.of_bits([(4, 4), (20, 2), (8, 8), (4, 4)], gains=False),
    "eights": RowLayout.of_runs([(8, Kind.E4M3), (16, Kind.UNIFORM8), (8, Kind.UNIFORM8)]),
}


def combined(*values: Any) -> list[tuple]:
    """Sets of parameters of a test, each a list of values: every combination on a GPU; in the
    interpreter, which takes a hundred times longer, only so many that each value occurs."""
    lists = [list(some) for some in values]
    if torch.cuda.is_available():
        return list(product(*lists))
    return [tuple(some[i % len(some)] for some in lists) for i in range(max(map(len, lists)))]
