"""From statistics to bases and ranks: which part of keys and values is worth its bytes."""

from .latent_kv import METHODS, LatentFactors, Unit, factorize, make_unit

__all__ = ["METHODS", "LatentFactors", "Unit", "factorize", "make_unit"]
