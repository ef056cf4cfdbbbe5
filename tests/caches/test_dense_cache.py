"""A dense cache of a converted model holds latents, recurrent state, and nothing else."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from cacheshrink_hybrid import LatentCache, cache_bytes, plan_of
from cacheshrink_hybrid.families import model_spec
from tests.families.tiny_configs import CASES, tiny_config, tiny_model
from tests.models import converted_copy, logits_in_pieces, pair, prefill_then_decode, random_ids

BATCH, NUM_TOKENS = 2, 22
UNWINDOWED = [
    case
    for case in CASES
    if all(
        layer.attention.sliding_window is None
        for layer in model_spec(tiny_config(case)).attention_layers
    )
]


def dense_cache(model: PreTrainedModel) -> LatentCache:
    return LatentCache(config=model.config)


def filled(model: PreTrainedModel, num_tokens: int = NUM_TOKENS) -> LatentCache:
    cache = dense_cache(model)
    logits_in_pieces(
        model, random_ids(BATCH, num_tokens), prefill_then_decode(num_tokens, 15), cache
    )
    return cache


@pytest.mark.parametrize("method", ["auto", "xkv"])
@pytest.mark.parametrize("case", CASES)
def test_latents_only(case: str, method: str) -> None:
    made = pair(case, method, ratio=4.0, metric="activation")
    cache, source_cache = filled(made.converted), filled(made.source)
    ranks = {idx: latent.kv_lora_rank for latent in made.plan.latents for idx in latent.layer_ids}
    assert ranks
    for idx, rank in ranks.items():
        layer, source_layer = cache.layers[idx], source_cache.layers[idx]
        assert layer.keys.shape == (BATCH, 1, source_layer.keys.shape[2], rank)
        assert layer.values.numel() == 0
        assert layer.keys.dtype == made.converted.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", UNWINDOWED)
def test_bytes_are_those_of_the_plan(case: str, dtype: torch.dtype) -> None:
    model = converted_copy(tiny_model(case, dtype=dtype), 4.0, "auto", metric="activation")
    plan = plan_of(model)
    counted = cache_bytes(filled(model))
    assert counted.kv == plan.bytes_per_token * dtype.itemsize // 2 * BATCH * NUM_TOKENS


@pytest.mark.parametrize("case", CASES)
def test_recurrent_state_is_that_of_the_source(case: str) -> None:
    """It is not compressed here, and does not grow."""
    source, converted = pair(case, "auto", ratio=4.0, metric="activation").both()
    state = cache_bytes(filled(converted)).state
    assert state == cache_bytes(filled(source)).state
    assert state == cache_bytes(filled(converted, NUM_TOKENS + 9)).state
    has_mixer = any(layer.mixer for layer in model_spec(source.config).layers)
    assert (state > 0) == has_mixer


def test_source_cache_is_counted_too() -> None:
    source = pair("llama").source
    spec = model_spec(source.config)
    assert cache_bytes(filled(source)).kv == spec.bytes_per_token * 2 * BATCH * NUM_TOKENS


def test_total() -> None:
    cache = filled(pair("bamba").converted)
    counted = cache_bytes(cache)
    assert counted.kv > 0
    assert counted.state > 0
    assert cache.nbytes() == counted.total == counted.kv + counted.state


def test_a_shared_storage_counts_once() -> None:
    storage = torch.zeros(1, 1, 4, 8)
    cache = DynamicCache()
    cache.update(storage, storage, 0)
    cache.layers[0].keys = cache.layers[0].values = storage
    assert cache_bytes(cache).kv == storage.nbytes


def test_empty_cache() -> None:
    assert dense_cache(pair("llama").converted).nbytes() == 0


def test_crop_and_continue() -> None:
    """Rejected tokens of assisted decoding are cut off again."""
    model, ids = pair("llama", "auto", ratio=4.0).converted, random_ids(1, 20)
    cache = dense_cache(model)
    whole = logits_in_pieces(model, ids, [20], cache)
    cache.crop(-8)
    with torch.no_grad():
        again = model(
            ids[:, 12:], position_ids=torch.arange(12, 20)[None], past_key_values=cache
        ).logits
    assert torch.allclose(again, whole[:, 12:], atol=1e-5)


@pytest.mark.parametrize("count", [1, 15])
def test_a_cache_that_cannot_go_back_is_as_before(count: int) -> None:
    """Exact rows could go back by one token, a sliding window could not."""
    settings = {"cache_bits": "auto", "exact_sinks": 2, "exact_window": 5}
    model = pair("gemma2", "auto", ratio=4.0, metric="activation", **settings).converted
    cache = dense_cache(model)
    logits_in_pieces(model, random_ids(1, 80), [70, *[1] * 10], cache)
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-count)
    assert {exact.num_tokens for exact in cache.exact.values()} == {80}
    assert cache.get_seq_length() == 80
