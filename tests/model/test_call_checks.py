"""What a converted model does before every call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from cacheshrink_hybrid import LatentCache, cache_bytes, make_cache
from tests.models import pair, random_ids

EXACT = {"ratio": 8.0, "cache_bits": "auto", "exact_sinks": 2, "exact_window": 3}


def _returned(model: Any, *args, **kwargs) -> Any:
    with torch.no_grad():
        output = model(*args, **kwargs)
    return next((x for x in output.values() if isinstance(x, DynamicCache)), None)


@pytest.mark.parametrize("case", ["llama", "gpt2", "granitemoehybrid-rope"])
def test_a_call_makes_a_small_cache(case: str) -> None:
    """One that keeps the exact rows of a few tokens, wherever transformers would make one."""
    model, ids = pair(case, **EXACT).converted, random_ids(2, 80)
    for kwargs in ({}, {"use_cache": True}):
        cache = _returned(model, ids, **kwargs)
        assert type(cache) is LatentCache and cache.get_seq_length() == 80
        handed = DynamicCache(config=model.config)
        assert _returned(model, ids, **kwargs, cache=handed) is handed
        assert cache_bytes(cache).kv < 0.5 * cache_bytes(handed).kv
    assert _returned(model, ids, use_cache=False) is None
    following = random_ids(2, 3, seed=1)
    with torch.no_grad():
        due = model(following, cache=handed).logits
        assert torch.equal(model(following, cache=cache).logits, due)


def test_the_configs_wish_counts() -> None:
    model = copy.deepcopy(pair("llama", **EXACT).converted)
    model.config.use_cache = False
    assert _returned(model, random_ids(1, 9)) is None
    assert type(_returned(model, random_ids(1, 9), use_cache=True)) is LatentCache


def test_inner_models_take_caches_by_place() -> None:
    model = pair("llama", **EXACT).converted
    ids = random_ids(1, 9)
    assert type(_returned(model.model, ids, None, None, None)) is LatentCache
    own = make_cache(model)
    assert _returned(model.model, ids, None, None, own) is own


def test_without_exact_tokens_the_cache_is_that_of_transformers() -> None:
    model = pair("llama", ratio=2.0).converted
    assert type(_returned(model, random_ids(1, 9))) is DynamicCache
