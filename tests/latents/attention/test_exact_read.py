"""Few-bit latents with exact sinks and an exact window: one result however a text is fed."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from cacheshrink_hybrid import (
    LatentCache,
    load_mla_model,
    make_cache,
    measure_cache_memory,
    save_mla_model,
)
from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.errors import ConfigError, NotSupportedError
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from tests.models import equal_pieces, logits_in_pieces, pair, random_ids

CASES = ["llama", "gpt2", "gemma2", "granitemoehybrid-rope"]
LENGTH = 29
SETTINGS = {
    "ratio": 8.0,
    "cache_bits": "auto",
    "exact_sinks": 2,
    "exact_window": 5,
    "fisher_labels": "model",
}

every_case = pytest.mark.parametrize("case", CASES)


def _converted(case: str, **settings) -> PreTrainedModel:
    """In float64, so that no latent lies within rounding of the edge between two codes."""
    return copy.deepcopy(pair(case, **{**SETTINGS, **settings}).converted).double()


@every_case
@pytest.mark.parametrize("length", [1, 3, 16])
def test_pieces_do_not_matter(case: str, length: int) -> None:
    converted = _converted(case)
    ids = random_ids(2, LENGTH)
    whole = logits_in_pieces(converted, ids, [LENGTH])
    fed = logits_in_pieces(converted, ids, equal_pieces(LENGTH, length))
    assert (fed - whole).abs().max() < 1e-5


@every_case
def test_generation_modes_agree(case: str) -> None:
    converted = _converted(case)
    ids = random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    beams = converted.generate(ids, attention_mask=mask, max_new_tokens=6, num_beams=3)
    uncached = converted.generate(
        ids, attention_mask=mask, max_new_tokens=6, num_beams=3, use_cache=False
    )
    assert torch.equal(beams, uncached)
    if case != "granitemoehybrid-rope":  # recurrent states cannot be taken back
        single = ids[1:]
        plain = converted.generate(single, max_new_tokens=8, do_sample=False)
        lookup = converted.generate(
            single, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3
        )
        assert torch.equal(plain, lookup)


def test_padding_does_not_move_the_sinks() -> None:
    """Up to the rounding of keys that are rotated by other slots."""
    converted = _converted("llama", exact_window=0, ratio=4.0)
    ids = random_ids(1, 12)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :5] = 0
    settings = {"max_new_tokens": 6, "do_sample": False, "output_logits": True}
    plain = converted.generate(ids, return_dict_in_generate=True, **settings)
    moved = converted.generate(
        padded, attention_mask=mask, return_dict_in_generate=True, **settings
    )
    difference = torch.stack(plain.logits) - torch.stack(moved.logits)
    coded = _converted("llama", exact_window=0, exact_sinks=0, ratio=4.0)
    without = coded.generate(ids, return_dict_in_generate=True, **settings)
    effect = torch.stack(plain.logits) - torch.stack(without.logits)
    assert effect.abs().max() > 0.05
    assert difference.abs().max() < 1e-3


@every_case
def test_live_bytes_are_those_of_the_plan(case: str) -> None:
    converted = pair(case, **SETTINGS).converted
    for batch in (1, 3):
        lengths = measure_cache_memory(converted, [2, 29, 64], batch_size=batch)
        for sizes in lengths["per_sequence_length"].values():
            assert sizes["live_bytes"] == sizes["expected_bytes"]


@every_case
@pytest.mark.parametrize("kind", ["dynamic", "static", "dense"])
def test_caches_of_transformers_keep_all_exact_rows(case: str, kind: str) -> None:
    if kind == "static" and case == "granitemoehybrid-rope":
        pytest.skip("static caches of transformers hold no recurrent states")
    converted = _converted(case)
    ids, lengths = random_ids(2, LENGTH), [9, 1, 1, 3, 9, 1, 5]
    made = {
        "dynamic": lambda: DynamicCache(config=converted.config),
        "static": lambda: StaticCache(config=converted.config, max_cache_len=LENGTH + 4),
        "dense": lambda: LatentCache(config=converted.config),
    }
    found = logits_in_pieces(converted, ids, lengths, made[kind]())
    due = logits_in_pieces(converted, ids, lengths)
    assert (found - due).abs().max() < 1e-5


def test_a_window_that_is_gone_does_not_come_back() -> None:
    converted = pair("llama", **SETTINGS).converted
    for cache in (make_cache(converted), LatentCache(config=converted.config)):
        logits_in_pieces(converted, random_ids(1, 70), [66, 1, 1, 1, 1], cache)
        with pytest.raises(NotSupportedError, match="cannot go back from 70 to 60"):
            cache.crop(-10)
        cache.crop(-1)
        assert cache.get_seq_length() == 69


@pytest.mark.parametrize("case", ["llama", "gemma2"])
@pytest.mark.parametrize("kind", ["pooled", "dense"])
def test_candidates_behind_a_prompt_are_taken_back(case: str, kind: str) -> None:
    """Assisted decoding reads the prompt and its first candidates in one pass."""
    converted, ids, num_prompt = _converted(case), random_ids(2, 190), 90
    cache = make_cache(converted) if kind == "pooled" else LatentCache(config=converted.config)
    cache.activate_past_recording()
    due = logits_in_pieces(converted, ids, [190])
    others = torch.cat([ids[:, :num_prompt], random_ids(2, 100, seed=1)], dim=1)
    logits_in_pieces(converted, others, [190], cache)
    cache.crop(-100)
    with torch.no_grad():
        found = converted(ids[:, num_prompt:], **{cache_argument(converted.forward): cache}).logits
    assert (found - due[:, num_prompt:]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["pooled", "dense"])
@torch.no_grad()
def test_sinks_of_rows_that_change_places_or_begin_again(kind: str) -> None:
    """A row of which one token was seen gets its second sink after the batch was put in order, and
    another padding when the cache is filled anew."""
    converted, ids = _converted("llama", exact_window=3), random_ids(2, LENGTH)
    cache = make_cache(converted) if kind == "pooled" else LatentCache(config=converted.config)
    given = {cache_argument(converted.forward): cache}
    mask, order = torch.ones_like(ids), torch.tensor([1, 0])
    mask[0, :11] = 0
    converted(ids[:, :12], attention_mask=mask[:, :12], **given)
    cache.reorder_cache(order)
    found = converted(ids[order, 12:], attention_mask=mask[order], **given).logits
    due = converted(ids, attention_mask=mask, use_cache=False).logits[order, 12:]
    assert (found - due).abs().max() < 1e-5
    cache.crop(-LENGTH)
    whole = logits_in_pieces(converted, ids, [LENGTH])
    assert (logits_in_pieces(converted, ids, [5, 9, 15], cache) - whole).abs().max() < 1e-5


def test_round_trip(tmp_path) -> None:
    converted = pair("llama", **SETTINGS).converted
    save_mla_model(converted, None, tmp_path / "model")
    loaded, _ = load_mla_model(tmp_path / "model")
    ids = random_ids(1, LENGTH)
    found, due = (logits_in_pieces(m, ids, [20, 9], make_cache(m)) for m in (loaded, converted))
    assert torch.equal(found, due)


def test_there_must_be_codes_to_be_exact_beside() -> None:
    with pytest.raises(ConfigError, match="exact_window=4 keeps tokens from being coded"):
        pair("llama", "joint", 2.0, exact_window=4)


@pytest.mark.parametrize("case", ["llama", "gemma2"])
@pytest.mark.parametrize("padding", [0, 4, 17])
@torch.no_grad()
def test_masks_of_flash_attention(case: str, padding: int) -> None:
    """It takes (B, slots) of padded batches and nothing for others: what is read is the same, also
    where a sliding window begins within the padding."""
    converted = _converted(case)
    ids, mask = random_ids(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :padding] = 0
    due = converted(ids, attention_mask=mask, use_cache=False).logits
    shown: list[torch.Tensor] = []

    def as_flash(_module, args, kwargs):
        return args, {**kwargs, "attention_mask": shown[-1] if padding else None}

    for module in converted.modules():
        if isinstance(module, LatentAttention):
            module.register_forward_pre_hook(as_flash, with_kwargs=True)
    cache, found = make_cache(converted), []
    for start, end in ((0, 20), (20, LENGTH)):
        shown.append(mask[:, :end])
        found.append(converted(ids[:, start:end], attention_mask=mask[:, :end], cache=cache).logits)
    assert (torch.cat(found, dim=1) - due)[mask.bool()].abs().max() < 1e-5
