"""The dense transformers cache of a converted model, and how many bytes a live cache holds.

Latents travel through the ordinary layers of transformers as one-headed keys with empty values, so
every operation on a cache (beams, crops, static buffers, windows) is the library's own. The pooled
cache beside it, `HybridCache`, is measured against this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin

from ..pool.lifetime import RECENT_HISTORY
from ..pool.memory import ExactMemory, ExactRows
from .loose_exact_rows import LooseExactRows


class LatentCache(DynamicCache, ExactMemory):
    """A `DynamicCache` that can say how much memory it holds, and that keeps the exact rows of
    layers whose plan asks for them.

    Attributes:
        exact: exact rows by layer.
        codes_every_boundary: code recurrent states within a pass of several tokens as often as
            decoding these one by one would, so that one pass measures what generation computes.
    """

    codes_every_boundary: bool = False

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.exact: dict[int, LooseExactRows] = {}
        self._history = 0

    def nbytes(self) -> int:
        """Bytes allocated for the sequences in this cache, KV and recurrent state together."""
        return self.memory().total

    def memory(self) -> CacheBytes:
        """The same, what grows with the tokens apart from what does not."""
        return _tensor_bytes(self)

    def exact_rows(
        self, layer_idx: int, rows: Tensor, first: Tensor, *, num_sinks: int, window: int
    ) -> ExactRows:
        if layer_idx not in self.exact:
            self.exact[layer_idx] = LooseExactRows(num_sinks, window)
        return self.exact[layer_idx].update(rows, first, self._history)

    def activate_past_recording(self) -> None:
        super().activate_past_recording()
        self._history = RECENT_HISTORY

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._select_exact(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        removed = min(0, int(tokens_to_remove))
        for exact in self.exact.values():
            exact.check_truncate(exact.num_tokens + removed)
        super().crop(tokens_to_remove)
        for exact in self.exact.values():
            exact.truncate(exact.num_tokens + removed)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for exact in self.exact.values():
            exact.select(torch.arange(exact.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_exact(indices)

    def reset(self) -> None:
        super().reset()
        self.exact.clear()

    def _select_exact(self, rows: Tensor) -> None:
        for exact in self.exact.values():
            exact.select(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBytes:
    """Allocated bytes of a live cache: what grows with the tokens, and what does not."""

    kv: int
    state: int

    @property
    def total(self) -> int:
        return self.kv + self.state


def num_cached_tokens(cache: Cache) -> int | Tensor:
    """Tokens of each sequence in a cache, on the device where a static one counts them there. A
    cache of recurrent states alone counts none: 1 if it holds a state, else 0."""
    if any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return cache.get_seq_length()
    return int(bool(cache.layers) and cache.has_previous_state())


def cache_bytes(cache: Cache) -> CacheBytes:
    """Bytes allocated for the sequences in a cache: the storages behind its tensors, each once, or
    the frames that a pooled cache holds; of a cache with two parts, in both."""
    if isinstance(cache, EncoderDecoderCache):
        parts = cache_bytes(cache.self_attention_cache), cache_bytes(cache.cross_attention_cache)
        kv, state = (sum(getattr(part, name) for part in parts) for name in ("kv", "state"))
        return CacheBytes(kv=kv, state=state)
    return cache.memory() if isinstance(cache, LatentCache) else _tensor_bytes(cache)


def _tensor_bytes(cache: Cache) -> CacheBytes:
    seen: set[int] = set()
    loose = getattr(cache, "exact", {}).values()
    exact = [tensor for rows in loose for tensor in rows.tensors()]
    kv = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    state = [
        tensor
        for layer in cache.layers
        for name in ("conv_states", "recurrent_states")
        for tensor in (getattr(layer, name, None) or {}).values()
    ]
    return CacheBytes(kv=loose_bytes(kv + exact, seen), state=loose_bytes(state, seen))


def loose_bytes(tensors: Iterable[Tensor | None], seen: set[int]) -> int:
    """Bytes of the storages behind these tensors that are not among those `seen`."""
    return sum(_storage_bytes(tensor, seen) for tensor in tensors)


def _storage_bytes(tensor: Tensor | None, seen: set[int]) -> int:
    if not isinstance(tensor, Tensor) or tensor.numel() == 0:
        return 0
    storage = tensor.untyped_storage()
    if storage.data_ptr() in seen:
        return 0
    seen.add(storage.data_ptr())
    return storage.nbytes()
