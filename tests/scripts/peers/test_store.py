"""What queries read in each convention, and what a cache of codes holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from scripts.benchmark import cached_logits
from scripts.peers import kivi, nvfp4, turboquant, vllm_int4
from scripts.peers.codec import Cast, MinMax
from scripts.peers.measuring import held_at
from scripts.peers.method import WINDOW, CacheReading, Held, held_tensors
from scripts.peers.quantized_cache import held_states
from scripts.peers.store import (
    WINDOWED,
    CodecStore,
    StoreLayer,
    held_by_stores,
    joined,
)
from tests.models import random_ids
from tests.scripts.peers.small_llama import small_llama, subject
from tests.tolerances import assert_same_logits

LENGTH = 64


def logits_with(layers: list, chunk_length: int, attention: str = "sdpa") -> Tensor:
    reading = CacheReading(small_llama(), Cache(layers=layers), held_by_stores, attention)
    with torch.inference_mode():
        chunks = random_ids(1, LENGTH)[0].split(chunk_length)
        logits = torch.cat([reading.feed(chunk) for chunk in chunks])
    assert small_llama().config._attn_implementation == "sdpa"
    return logits


def stores(key_codec, value_codec) -> list[CodecStore]:
    return [CodecStore(key_codec, value_codec) for _ in range(5)]


@pytest.mark.parametrize("convention", ["read", "raw", "w32"])
def test_an_exact_store_changes_nothing(convention: str) -> None:
    exact = Cast(torch.float32)
    layers = [StoreLayer(store, convention) for store in stores(exact, exact)]
    attention = WINDOWED if convention == "w32" else "sdpa"
    with torch.inference_mode():
        expected, _ = cached_logits(small_llama(), random_ids(1, LENGTH), 16, DynamicCache())
    assert_same_logits(logits_with(layers, 16, attention)[None], expected)


def test_what_is_read_back_does_not_depend_on_chunks() -> None:
    def read(chunk_length: int) -> Tensor:
        coarse = [StoreLayer(store, "read") for store in stores(MinMax(4), MinMax(4))]
        return logits_with(coarse, chunk_length)

    # Codes are steps, which rounding by another order of sums seldom crosses.
    assert (read(LENGTH) - read(1)).abs().median() < 1e-4


def test_the_own_chunk_is_exact_in_raw() -> None:
    coarse = [StoreLayer(store, "raw") for store in stores(MinMax(2), MinMax(2))]
    with torch.inference_mode():
        expected = small_llama()(random_ids(1, LENGTH)).logits[0]
    logits = logits_with(coarse, 32)
    assert_same_logits(logits[None, :32], expected[None, :32])
    assert (logits[32:] - expected[32:]).abs().max() > 0.1


class DecodingLayer(DynamicLayer):
    """One token at a time: the last `WINDOW` tokens exact, older ones as a store has them."""

    def __init__(self, store: CodecStore) -> None:
        super().__init__()
        self.store, self.exact = store, []

    def update(self, key_states, value_states, *args, **kwargs):
        self.lazy_initialization(key_states, value_states)
        self.store.append(key_states, value_states)
        self.keys, self.values = self.store.decoded()
        self.exact.append((key_states, value_states))
        older = self.keys[..., :-WINDOW, :], self.values[..., :-WINDOW, :]
        return joined([older, *self.exact[-WINDOW:]])


def test_a_window_in_chunks_is_that_of_decoding() -> None:
    codec = MinMax(3)
    decoded = logits_with([DecodingLayer(store) for store in stores(codec, codec)], 1)
    layers = [StoreLayer(store, "w32") for store in stores(codec, codec)]
    in_chunks = logits_with(layers, 16, WINDOWED)
    assert (in_chunks - decoded).abs().median() < 1e-4
    read = logits_with([StoreLayer(store, "read") for store in stores(codec, codec)], 16)
    assert (read - decoded).abs().median() > 1e-2


def filled(layers: list[StoreLayer], num_tokens: int) -> Cache:
    """A cache that took in random states in chunks of 64."""
    torch.manual_seed(0)
    for _ in range(0, num_tokens, 64):
        for layer in layers:
            layer.update(torch.randn(1, 1, 64, 32), torch.randn(1, 1, 64, 32))
    return Cache(layers=layers)


METHODS = [
    *vllm_int4.methods(),
    *nvfp4.methods(),
    *turboquant.methods(),
    *kivi.methods(),
]


@pytest.mark.parametrize("name", [method.name for method in METHODS])
def test_bytes_at_any_length_lie_on_a_line(name: str) -> None:
    """Those that are told for 8k tokens are those of a cache that holds so many."""
    method = next(method for method in METHODS if method.name == name)
    begin = method.start(subject())

    def held(num_tokens: int) -> Held:
        return held_by_stores(filled(begin().cache.layers, num_tokens))

    counted = {
        n: {k: getattr(held(n), k) for k in ("here", "at_16bit", "exact")} for n in (128, 256)
    }
    assert held_at({str(n): found for n, found in counted.items()}, 1024) == held(1024)


# Bytes per head and token at 64 channels, keys and values: those of the slots in vLLM.
SLOTS = {
    **dict(zip(turboquant.PRESETS, (100, 70, 62, 54), strict=True)),
    "int4_per_token_head": 72,
    "nvfp4": 72,
}


@pytest.mark.parametrize(("name", "slot"), SLOTS.items())
def test_slots(name: str, slot: int) -> None:
    if name in turboquant.PRESETS:
        codecs = turboquant.codecs(name, 64)
    else:
        codec = {"nvfp4": nvfp4.NVFP4(), "int4_per_token_head": vllm_int4.Int4PerTokenHead(64)}[
            name
        ]
        codecs = codec, codec
    store = CodecStore(*codecs)
    store.append(torch.randn(1, 3, 8, 64), torch.randn(1, 3, 8, 64))
    assert held_tensors(store.stored()).at_16bit == 3 * 8 * slot


def test_edge_layers_stay_at_16_bits() -> None:
    begin = next(
        method for method in METHODS if method.name == "turboquant_4bit_nc edges at 16 bits read"
    ).start(subject())
    sizes = [
        held_tensors(layer.store.stored()).here for layer in filled(begin().cache.layers, 64).layers
    ]
    assert sizes == [64 * 2 * 64, 64 * 2 * 64, 64 * 38, 64 * 2 * 64, 64 * 2 * 64]


def test_an_exact_window_takes_the_place_of_codes() -> None:
    layers = [StoreLayer(CodecStore(MinMax(4), MinMax(4)), "w32") for _ in range(2)]
    held = held_by_stores(filled(layers, 128))
    codes, exact = 2 * (128 - WINDOW) * 2 * 20, 2 * WINDOW * 2 * 32 * 2
    assert held == Held(here=codes + exact, at_16bit=codes + exact, exact=exact)


def test_states_count_two_bytes_at_16_bits() -> None:
    cache = DynamicCache(config=small_llama().config)
    cached_logits(small_llama(), random_ids(1, 10), 10, cache)
    assert held_states(cache) == Held(here=5 * 10 * 2 * 32 * 4, at_16bit=5 * 10 * 2 * 32 * 2)
