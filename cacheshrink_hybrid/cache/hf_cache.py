"""The transformers cache of a converted model, and how many bytes a live cache holds.

Latents travel through the ordinary layers of transformers as one-headed keys with empty values, so
every operation on a cache (beams, crops, static buffers, windows) is the library's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel


class LatentCache(DynamicCache):
    """A `DynamicCache` that can say how much memory it holds."""

    def nbytes(self) -> int:
        """Bytes allocated for the sequences in this cache, KV and recurrent state together."""
        return cache_bytes(self).total


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBytes:
    """Allocated bytes of a live cache: what grows with the tokens, and what does not."""

    kv: int
    state: int

    @property
    def total(self) -> int:
        return self.kv + self.state


def make_cache(model: PreTrainedModel) -> LatentCache:
    """An empty cache for `model`, converted or not: the one that `generate()` builds itself."""
    return LatentCache(config=model.config.get_text_config(decoder=True))


def cache_bytes(cache: Cache) -> CacheBytes:
    """Count the storages behind a cache's tensors, each once."""
    seen: set[int] = set()
    return CacheBytes(
        kv=sum(
            _storage_bytes(getattr(layer, name, None), seen)
            for layer in cache.layers
            for name in ("keys", "values")
        ),
        state=sum(
            _storage_bytes(tensor, seen)
            for layer in cache.layers
            for name in ("conv_states", "recurrent_states")
            for tensor in (getattr(layer, name, None) or {}).values()
        ),
    )


def _storage_bytes(tensor: Tensor | None, seen: set[int]) -> int:
    if not isinstance(tensor, Tensor) or tensor.numel() == 0:
        return 0
    storage = tensor.untyped_storage()
    if storage.data_ptr() in seen:
        return 0
    seen.add(storage.data_ptr())
    return storage.nbytes()
