"""KVQuant++, by its package: blocks of codes, whose outlying channels have more bits.

Its cache does not run on the releases of transformers that this package supports, so its layers,
codec and blocks as published, serve as stores here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from ..benchmark import cached_logits
from .method import CacheReading, Method, Reading, Subject
from .store import Pair, Store, StoreLayer, held_by_stores, joined

PACKAGE = "kvquant-plus-plus==0.1.17"
BITS = (4, 3, 2)
"""As its argument counts them; what is stored is a bit more, which the bytes show."""
CODECS = {"": "paper-outlier", " plain": "paper"}
CALIBRATED_ON = 8
"""Sequences of calibration text that show which channels lie out."""


class KVQuantStore(Store):
    """A layer of the package; every chunk is a block."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.layer.update(keys, values)
        self.layer.flush()

    def decoded(self) -> Pair:
        return joined(list(self.layer.iter_kv_blocks()))

    def stored(self) -> Any:
        return [list(block) for block in (*self.layer._k_blocks, *self.layer._v_blocks)]


@torch.inference_mode()
def calibration_states(subject: Subject) -> list[Pair]:
    """Keys and values of every layer on the calibration text."""
    caches = [DynamicCache(config=subject.model.config) for _ in range(CALIBRATED_ON)]
    if subject.model.config._attn_implementation != "sdpa":
        subject.model.set_attn_implementation("sdpa")
    for ids, cache in zip(subject.sequences[:CALIBRATED_ON], caches, strict=False):
        cached_logits(subject.model, ids, ids.shape[1], cache)
    used: list[Cache] = [cache for cache in caches if cache.get_seq_length()]
    return [
        joined([(layer.keys, layer.values) for layer in layers])
        for layers in zip(*(cache.layers for cache in used), strict=True)
    ]


def _start(bits: int, codec: str, convention: str, subject: Subject) -> Callable[[], Reading]:
    from kvquant.compact_cache import CompactKVLayer

    config = subject.model.config
    groups = config.num_attention_heads // config.num_key_value_heads
    shown = calibration_states(subject)

    def layer(layer_idx: int) -> StoreLayer:
        made = CompactKVLayer(bits=bits, codec=codec, gqa_factor=groups)
        made.calibrate(*shown[layer_idx])
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
