"""KVQuant++, by its package: blocks of codes, whose outlying channels have more bits.

Its cache does not run on the releases of transformers that this package supports, so its layers,
codec and blocks as published, serve as stores here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor
from transformers import Cache

from .method import CacheReading, Method, Reading, Subject
from .store import Pair, Store, StoreLayer, held_by_stores, joined

PACKAGE = "kvquant-plus-plus==0.1.17"
BITS = (4, 3, 2)
"""As its argument counts them; what is stored is a bit more, which the bytes show."""
CODECS = {"": "paper-outlier", " plain": "paper"}


class KVQuantStore(Store):
    """A layer of the package; every chunk becomes blocks of their own."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._decoded: list[Pair] = []

    def append(self, keys: Tensor, values: Tensor) -> None:
        layer, known = self.layer, len(self.layer._k_blocks)
        layer.update(keys, values)
        layer.flush()
        new = [
            (layer._dequantize(key_block, False), layer._dequantize(value_block, True))
            for key_block, value_block in zip(
                layer._k_blocks[known:], layer._v_blocks[known:], strict=True
            )
        ]
        self._decoded = [joined([*self._decoded, *new])]

    def decoded(self) -> Pair:
        return self._decoded[0]

    def stored(self) -> Any:
        return [list(block) for block in (*self.layer._k_blocks, *self.layer._v_blocks)]


def _start(bits: int, codec: str, convention: str, subject: Subject) -> Callable[[], Reading]:
    from kvquant.compact_cache import CompactKVLayer

    config = subject.model.config
    groups = config.num_attention_heads // config.num_key_value_heads

    def layer(layer_idx: int) -> StoreLayer:
        made = CompactKVLayer(bits=bits, codec=codec, gqa_factor=groups)
        made.calibrate(*subject.states[layer_idx])
        return StoreLayer(KVQuantStore(made), convention)

    def begin() -> Reading:
        layers = [layer(layer_idx) for layer_idx in range(config.num_hidden_layers)]
        return CacheReading(subject.model, Cache(layers=layers), held_by_stores)

    return begin


def methods() -> Iterator[Method]:
    for bits in BITS:
        for suffix, codec in CODECS.items():
            for convention in ("read", "raw"):
                yield Method(
                    name=f"kvquant++_{bits}bit{suffix} {convention}",
                    family="KVQuant++",
                    convention=convention,
                    start=partial(_start, bits, codec, convention),
                    package=PACKAGE,
                )
