"""From statistics to bases and ranks: which part of keys and values is worth its bytes."""

from .coding import code_channels
from .latent_kv import METHODS, LatentFactors, Unit, factorize, full_rank_factors, make_unit

__all__ = [
    "METHODS",
    "LatentFactors",
    "Unit",
    "code_channels",
    "factorize",
    "full_rank_factors",
    "make_unit",
]
