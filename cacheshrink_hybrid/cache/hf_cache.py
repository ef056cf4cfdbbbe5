"""The transformers cache of a converted model, and how many bytes a live cache holds.

Latents travel through the ordinary layers of transformers as one-headed keys with empty values, so
every operation on a cache (beams, crops, static buffers, windows) is the library's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from .exact_tokens import ExactTokens


class LatentCache(DynamicCache):
    """A `DynamicCache` that can say how much memory it holds, and that keeps the exact copies of
    layers whose plan asks for them.

    Attributes:
        exact: copies by layer.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.exact: dict[int, ExactTokens] = {}

    def nbytes(self) -> int:
        """Bytes allocated for the sequences in this cache, KV and recurrent state together."""
        return cache_bytes(self).total

    def exact_tokens(self, layer_idx: int, num_sinks: int, window: int) -> ExactTokens:
        """The copies of one layer, made at their first use."""
        if layer_idx not in self.exact:
            self.exact[layer_idx] = ExactTokens(num_sinks, window)
        return self.exact[layer_idx]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._select_exact(beam_idx)

    def crop(self, *args, **kwargs) -> None:
        super().crop(*args, **kwargs)
        for layer_idx, copies in self.exact.items():
            copies.truncate(self.layers[layer_idx].get_seq_length())

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for copies in self.exact.values():
            copies.select(torch.arange(copies.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_exact(indices)

    def reset(self) -> None:
        super().reset()
        self.exact.clear()

    def _select_exact(self, rows: Tensor) -> None:
        for copies in self.exact.values():
            copies.select(rows)


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
    copies = [
        tensor for exact in getattr(cache, "exact", {}).values() for tensor in exact.tensors()
    ]
    return CacheBytes(
        kv=sum(
            _storage_bytes(getattr(layer, name, None), seen)
            for layer in cache.layers
            for name in ("keys", "values")
        )
        + sum(_storage_bytes(tensor, seen) for tensor in copies),
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
