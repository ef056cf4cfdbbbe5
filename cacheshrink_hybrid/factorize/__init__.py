"""From statistics to bases and ranks: which part of keys and values is worth its bytes."""

from .coding import CodedFactors, code_channels, row_alignment, run_channels
from .latent_kv import (
    METHODS,
    KeyShape,
    LatentFactors,
    Unit,
    factorize,
    full_rank_factors,
    make_unit,
)
from .read_layouts import Reader, fastest_factors, headwise_factors
from .time_model import read_operations, read_seconds

__all__ = [
    "METHODS",
    "CodedFactors",
    "KeyShape",
    "LatentFactors",
    "Reader",
    "Unit",
    "code_channels",
    "factorize",
    "fastest_factors",
    "full_rank_factors",
    "headwise_factors",
    "make_unit",
    "read_operations",
    "read_seconds",
    "row_alignment",
    "run_channels",
]
