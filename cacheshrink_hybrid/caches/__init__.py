"""Where a converted model keeps what it remembers."""

from .dense_cache import CacheBytes, LatentCache, cache_bytes
from .hybrid_cache import HybridCache
from .making import make_cache

__all__ = ["CacheBytes", "HybridCache", "LatentCache", "cache_bytes", "make_cache"]
