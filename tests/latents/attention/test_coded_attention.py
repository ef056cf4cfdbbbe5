"""Coded latents in a model: rows in the cache, the same result however a text is fed."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid import load_mla_model, make_cache, save_mla_model
from cacheshrink_hybrid.caches import cache_bytes
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from tests.models import logits_in_pieces, pair, random_ids

# RoPE, no RoPE, windows with a softcap, sinks, key norms, shared modules, partial rotation.
CODED_CASES = ("llama", "gpt2", "gemma2", "gpt_oss", "qwen3", "zamba2", "granitemoehybrid")
CODED_CASES += ("gemma3n_text",)
# Of these, the ones whose experts and mixers compute in float64, and olmo2's norm over all heads.
FLOAT64_CASES = ("llama", "gpt2", "gemma2", "qwen3", "olmo2", "granitemoehybrid-rope")
FLOAT64_CASES += ("gemma3n_text",)
LENGTH = 29
CODED = {"ratio": 3.0, "cache_bits": "auto"}


def coded(case: str) -> PreTrainedModel:
    """In float64, so that no latent lies within rounding of the edge between two codes."""
    return copy.deepcopy(pair(case, **CODED).converted).double()


every_coded_case = pytest.mark.parametrize("case", CODED_CASES)


@pytest.mark.parametrize("case", FLOAT64_CASES)
@pytest.mark.parametrize("length", [1, 3, 16])
def test_pieces_do_not_matter(case: str, length: int) -> None:
    converted = coded(case)
    ids = random_ids(2, LENGTH)
    whole = logits_in_pieces(converted, ids, [LENGTH])
    pieces = [length] * (LENGTH // length) + ([LENGTH % length] if LENGTH % length else [])
    fed = logits_in_pieces(converted, ids, pieces)
    assert (fed - whole).abs().max() < 1e-5


@every_coded_case
@pytest.mark.parametrize("batch", [1, 3])
def test_the_cache_holds_the_planned_bytes(case: str, batch: int) -> None:
    converted, plan = pair(case, **CODED).converted, pair(case, **CODED).plan
    cache = make_cache(converted)
    window = min(
        (m.head.window or LENGTH) for m in converted.modules() if isinstance(m, LatentAttention)
    )
    num_tokens = min(LENGTH, window)
    logits_in_pieces(converted, random_ids(batch, num_tokens), [num_tokens], cache)
    assert cache.store is not None
    frames = batch * cache.store.layout.frames_for(num_tokens)
    held = cache_bytes(cache).kv
    assert held == frames * cache.store.layout.frame_bytes
    assert held >= batch * num_tokens * plan.bytes_per_token
    stored = [
        layer.keys.dtype for layer in cache.layers if getattr(layer, "keys", None) is not None
    ]
    assert set(stored) == {torch.uint8}


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2"])
def test_generation_modes_agree(case: str) -> None:
    converted = coded(case)
    ids = random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    greedy = converted.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    static = converted.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        cache_implementation="static",
        disable_compile=True,
    )
    assert torch.equal(greedy, static)
    single = ids[1:]
    plain = converted.generate(single, max_new_tokens=8, do_sample=False)
    lookup = converted.generate(
        single, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3
    )
    assert torch.equal(plain, lookup)
    beams = converted.generate(ids, attention_mask=mask, max_new_tokens=6, num_beams=3)
    uncached = converted.generate(
        ids, attention_mask=mask, max_new_tokens=6, num_beams=3, use_cache=False
    )
    assert torch.equal(beams, uncached)


@every_coded_case
def test_round_trip(case: str, tmp_path) -> None:
    converted = pair(case, **CODED).converted
    save_mla_model(converted, None, tmp_path / "model")
    loaded, _ = load_mla_model(tmp_path / "model")
    ids = random_ids(1, LENGTH)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, converted(ids).logits)
