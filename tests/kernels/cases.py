"""The row layouts that every kernel on latents is tested with, and what is combined with them."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import Kind, RowLayout

LAYOUTS = {
    "float32": RowLayout.of_runs([(48, Kind.FLOAT32)], alignment=16),
    "float16": RowLayout.of_runs([(48, Kind.FLOAT16)], alignment=16),
    "bfloat16": RowLayout.of_runs([(48, Kind.BFLOAT16)], alignment=16),
    "e4m3": RowLayout.of_runs([(48, Kind.E4M3)], alignment=16),
    "e5m2": RowLayout.of_runs([(48, Kind.E5M2)], alignment=16),
    "8": RowFormat(alignment=16).layout([(48, 8)]),
    "4": RowFormat(alignment=16).layout([(48, 4)]),
    "mixed": RowFormat(alignment=16).layout([(16, 16), (48, 8), (32, 5), (16, 3)]),
    "planes": RowFormat(alignment=16).layout([(16, 6), (24, 4), (24, 2), (8, 1)]),
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
    # Narrow: short runs, last bytes that are not full, odd addresses.
    "narrow": RowFormat().layout([(8, 4), (4, 1), (8, 16), (7, 3), (5, 6)]),
    "plain": RowFormat(gains=False).layout([(8, 4), (20, 3), (8, 8), (4, 2)]),
    "eights": RowLayout.of_runs([(8, Kind.E4M3), (16, Kind.UNIFORM8), (8, Kind.UNIFORM8)]),
}


def combined(*values: Any) -> list[tuple]:
    """Sets of parameters of a test, each a list of values: every combination on a GPU; in the
    interpreter, which takes a hundred times longer, only so many that each value occurs."""
    lists = [list(some) for some in values]
    if torch.cuda.is_available():
        return list(product(*lists))
    return [tuple(some[i % len(some)] for some in lists) for i in range(max(map(len, lists)))]
