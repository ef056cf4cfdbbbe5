"""Copies of a cache, made by pickling, saving or copying it: each goes on as the one it is of."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.caches import LatentCache, cache_bytes, make_cache
from tests.models import pair, random_ids

IDS = random_ids(2, 22)
STATES = {"state_ratio": 2.0, "state_dtype": "int8", "replay_length": 3}
CODED = {"ratio": 3.0, "cache_bits": "auto"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("llama", CODED),
    "uncoded": ("gpt2", {}),
    "windows": ("mistral-window", CODED),
    "exact": ("llama", {**CODED, "exact_sinks": 2, "exact_window": 4}),
    "mamba2": ("granitemoehybrid", {**CODED, **STATES}),
    "mamba": ("jamba", STATES),
    "delta-net": ("qwen3_next", {**CODED, **STATES}),
    "both-in-one-layer": ("falcon_h1", {**CODED, **STATES}),
    "states-as-they-are": ("granitemoehybrid", CODED),
}


def saved(cache: Cache) -> Cache:
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(cache: Cache) -> Cache:
    return pickle.loads(pickle.dumps(cache))


WAYS: dict[str, Callable[[Cache], Cache]] = {
    "pickle": pickled,
    "deepcopy": copy.deepcopy,
}
every_model = pytest.mark.parametrize("model_name", MODELS)
every_way = pytest.mark.parametrize("way", WAYS)


def model_of(name: str) -> PreTrainedModel:
    case, settings = MODELS[name]
    return pair(case, **settings).converted


@torch.no_grad()
def fed(model: PreTrainedModel, cache: Cache, *parts: slice) -> Tensor:
    """Logits of the last of these pieces of the text, fed one after the other."""
    for part in parts:
        given = {cache_argument(model.forward): cache}
        logits = model(IDS[:, part], **given).logits
    return logits


def steps(start: int, end: int) -> list[slice]:
    return [slice(i, i + 1) for i in range(start, end)]


@every_way
@pytest.mark.parametrize("num_fed", [9, 12])
@every_model
def test_goes_on(model_name: str, num_fed: int, way: str) -> None:
    """Before it is laid out in the pool and after; and apart from the original."""
    model = model_of(model_name)
    cache = make_cache(model)
    fed(model, cache, slice(0, 9), *steps(9, num_fed))
    copied = WAYS[way](cache)
    after = [slice(num_fed, num_fed + 4), *steps(num_fed + 4, 20)]
    due = fed(model, cache, *after)
    assert torch.equal(fed(model, copied, *after), due)
    assert cache_bytes(copied) == cache_bytes(cache)
    copied.reorder_cache(torch.tensor([1, 1]))
    cache.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(fed(model, copied, *steps(20, 22)), fed(model, cache, *steps(20, 22)))


@every_way
@pytest.mark.parametrize("crop_first", [True, False])
@pytest.mark.parametrize("model_name", ["attention", "windows", "exact", "mamba2", "mamba"])
def test_while_the_past_is_recorded(model_name: str, crop_first: bool, way: str) -> None:
    """Tokens that were recorded can be taken back from the copy, before its model is seen again."""
    model = model_of(model_name)
    cache = make_cache(model)
    cache.activate_past_recording()
    fed(model, cache, slice(0, 9), slice(9, 13))
    if crop_first:
        cache.crop(-1)
        fed(model, cache, slice(12, 15))
    copied = WAYS[way](cache)
    for one in (cache, copied):
        one.crop(-2)
    start = 13 if crop_first else 11
    due = fed(model, cache, slice(start, start + 3))
    assert torch.equal(fed(model, copied, slice(start, start + 3)), due)
    for one in (cache, copied):
        one.crop(-1)
    due = fed(model, cache, *steps(start + 2, 20))
    assert torch.equal(fed(model, copied, *steps(start + 2, 20)), due)


@pytest.mark.parametrize("kind", [DynamicCache, LatentCache, StaticCache])
@pytest.mark.parametrize("model_name", ["exact", "attention", "mamba2", "both-in-one-layer"])
def test_caches_of_transformers(model_name: str, kind: type[Cache]) -> None:
    model = model_of(model_name)
    length = {"max_cache_len": 24} if kind is StaticCache else {}
    cache = kind(config=model.config, **length)
    fed(model, cache, slice(0, 9), *steps(9, 12))
    copied = pickled(cache)
    due = fed(model, cache, *steps(12, 20))
    assert torch.equal(fed(model, copied, *steps(12, 20)), due)


@every_model
def test_saved_before_the_first_step(model_name: str) -> None:
    model = model_of(model_name)
    cache = make_cache(model)
    copied = saved(cache)
    parts = slice(0, 9), *steps(9, 12)
    assert torch.equal(fed(model, copied, *parts), fed(model, cache, *parts))


def test_a_copy_of_a_beam_shares_nothing() -> None:
    """Frames that sequences of one cache share are the copy's own."""
    model = model_of("mamba2")
    cache = make_cache(model)
    fed(model, cache, slice(0, 9))
    cache.reorder_cache(torch.tensor([0, 0]))
    copied = pickled(cache)
    fed(model, copied, *steps(9, 14))
    due = make_cache(model)
    fed(model, due, slice(0, 9))
    due.reorder_cache(torch.tensor([0, 0]))
    assert torch.equal(fed(model, cache, *steps(9, 12)), fed(model, due, *steps(9, 12)))
