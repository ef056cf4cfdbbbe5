"""Every family with recurrent layers: our mixers at full width compute what the source computes."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.evaluation.memory import measure_cache_memory
from cacheshrink_hybrid.families import FAMILIES, model_spec
from cacheshrink_hybrid.families.states import MIXERS
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.states.kinds import compressible_layers
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.families.tiny_configs import CASES, RECURRENT_CASES, ROW_CASES, tiny_config, tiny_model
from tests.models import (
    Pair,
    assert_same_padded_generation,
    converted_copy,
    equal_pieces,
    logits_in_pieces,
    logits_of,
    pair,
    prefill_then_decode,
    random_ids,
)
from tests.tolerances import assert_same_logits, largest_difference

NUM_TOKENS, NUM_PREFILL = 37, 21
RECURRENT = [case for case in CASES if compressible_layers(model_spec(tiny_config(case)))]
ATTENDING = [*RECURRENT]
RECURRENT += RECURRENT_CASES
every_case = pytest.mark.parametrize("case", RECURRENT)
every_replay = pytest.mark.parametrize("replay_length", [1, 5])


def exact(case: str, replay_length: int = 1) -> Pair:
    return pair(case, state_dtype="float32", replay_length=replay_length)


@cache
def narrow(case: str) -> Pair:
    """States in fewer bytes, with a ring."""
    source = tiny_model(case)
    settings = {"state_ratio": 1.5, "state_dtype": "int8", "replay_length": 3}
    return Pair(source, converted := converted_copy(source, **settings), plan_of(converted))


def test_all_kinds_of_mixers_are_among_the_cases() -> None:
    kinds = {
        layer.state.kind
        for case in RECURRENT
        for layer in model_spec(tiny_config(case)).state_layers
        if layer.state is not None
    }
    assert kinds == {"mamba2", "mamba", "gated_delta_net"}
    families = {tiny_config(case).model_type for case in RECURRENT}
    others = {tiny_config(case).model_type for case in ROW_CASES}
    assert families | others >= {row for row in FAMILIES if row in MIXERS} - {"lfm2"}


@pytest.mark.parametrize("case", [*RECURRENT, "lfm2"])
def test_spec_counts_what_the_source_caches(case: str) -> None:
    source = tiny_model(case)
    (live,) = measure_cache_memory(source, [12])["per_sequence_length"].values()
    assert live["state_bytes"] == live["source_state_bytes"] > 0
    wide = sum(layer.state.recurrent_bytes for layer in model_spec(source.config).state_layers)
    narrow = model_spec(source.config).bytes_per_sequence - wide
    assert live["state_bytes"] == wide + 2 * narrow  # a float32 model's columns have 32 bits


@every_replay
@every_case
def test_forward_prefill_and_decode(case: str, replay_length: int) -> None:
    source, converted = exact(case, replay_length).both()
    mixers = [m for m in converted.modules() if isinstance(m, RecurrentMixer)]
    assert len(mixers) == len(model_spec(source.config).state_layers)
    ids = random_ids(2, NUM_TOKENS)
    expected = logits_of(source, ids)
    assert_same_logits(logits_of(converted, ids), expected)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert_same_logits(logits_in_pieces(converted, ids, pieces), expected)


@pytest.mark.parametrize("length", [1, 3, 16])
@every_replay
@every_case
def test_pieces_equal_one_pass(case: str, replay_length: int, length: int) -> None:
    """Also for Mamba-1, whose source forgets its state between pieces."""
    source, converted = exact(case, replay_length).both()
    ids = random_ids(2, NUM_TOKENS)
    pieces = equal_pieces(NUM_TOKENS, length)
    assert_same_logits(logits_in_pieces(converted, ids, pieces), logits_of(source, ids))


@pytest.mark.parametrize("lengths", [(21, *[1] * 16), (3, *[1] * 34), (1, 2, 8, 9, 1, 16)], ids=len)
@every_replay
@pytest.mark.parametrize("case", ATTENDING)
def test_static_caches(case: str, replay_length: int, lengths: tuple[int, ...]) -> None:
    """Their slots that nothing was written to yet are seen by nobody, with or without a mask."""
    source, converted = exact(case, replay_length).both()
    ids = random_ids(2, NUM_TOKENS)
    cache = StaticCache(config=converted.config, max_cache_len=NUM_TOKENS + 9)
    actual = logits_in_pieces(converted, ids, lengths, cache)
    assert_same_logits(actual, logits_of(source, ids))


needs_crop = pytest.mark.skipif(
    not StaticLayer.is_croppable, reason="this transformers takes no tokens back from static caches"
)
lookup = pytest.param({"prompt_lookup_num_tokens": 3}, marks=needs_crop, id="lookup")


@pytest.mark.parametrize("lookup", [pytest.param({}, id="one-by-one"), lookup])
@pytest.mark.parametrize("case", ATTENDING)
def test_generation_with_a_static_cache(case: str, lookup: dict) -> None:
    """States in fewer bytes, from whose ring tokens are taken back."""
    model = narrow(case).converted
    ids = random_ids(1, 4).repeat(1, 3)
    settings = {"max_new_tokens": 12, "do_sample": False, **lookup}
    due = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, cache_implementation="static", **settings), due)


@pytest.mark.parametrize("case", ATTENDING)
def test_caches_of_coded_states_are_refused_where_states_are_not_converted(case: str) -> None:
    model, other = narrow(case).converted, pair(case).converted
    ids, name = random_ids(1, 5), cache_argument(model)
    cache = make_cache(model)
    with torch.no_grad():
        model(ids, use_cache=True, **{name: cache})
        with pytest.raises(NotSupportedError, match="codes of another model"):
            other(ids[:, :1], use_cache=True, **{name: cache})


@every_replay
@every_case
def test_left_padding_and_beams(case: str, replay_length: int) -> None:
    source, converted = exact(case, replay_length).both()
    ids = random_ids(3, 15)
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    mask[1, :1] = 0
    assert_same_padded_generation(source, converted, ids, mask, 8)
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 7, "do_sample": False}
    assert torch.equal(converted.generate(ids, **beams), source.generate(ids, **beams))


@every_replay
@every_case
def test_prompt_lookup_decoding(case: str, replay_length: int) -> None:
    """Transformers refuses it on recurrent models; with rollback it gives the greedy tokens."""
    source, converted = exact(case, replay_length).both()
    ids = torch.cat([random_ids(1, 6)] * 3, dim=1)
    if case in RECURRENT_CASES:  # it looks for a cache of keys and values
        with pytest.raises(ValueError, match="not supported with stateful models"):
            converted.generate(ids, max_new_tokens=2, prompt_lookup_num_tokens=4)
        return
    greedy = source.generate(ids, max_new_tokens=24, do_sample=False)
    looked_up = converted.generate(
        ids, max_new_tokens=24, do_sample=False, prompt_lookup_num_tokens=4
    )
    assert torch.equal(looked_up, greedy)


@pytest.mark.parametrize("case", ["granitemoehybrid", "jamba", "qwen3_next", "zamba2"])
def test_assistant_model(case: str) -> None:
    source, converted = exact(case).both()
    ids = random_ids(1, 12)
    greedy = source.generate(ids, max_new_tokens=16, do_sample=False)
    for assistant in (converted, exact(case, 5).converted):
        assisted = converted.generate(
            ids, max_new_tokens=16, do_sample=False, assistant_model=copy.deepcopy(assistant)
        )
        assert torch.equal(assisted, greedy)


def test_untouched_recurrent_layers_keep_the_refusal() -> None:
    converted = pair("granitemoehybrid").converted
    with pytest.raises(ValueError, match="not supported with stateful models"):
        converted.generate(random_ids(1, 6), max_new_tokens=3, prompt_lookup_num_tokens=2)


@torch.no_grad()
@pytest.mark.parametrize("removed", [0, 4])
@every_case
def test_tokens_taken_back_leave_no_trace(case: str, removed: int) -> None:
    """Coded states too: after a crop everything is as if the tokens had never come."""
    model = narrow(case).converted
    ids = random_ids(2, 30)
    results = []
    for detour in (False, True):
        cache = make_cache(model)
        logits_in_pieces(model, ids[:, :13], [13], cache)
        if detour:
            cache.activate_past_recording()
        for start in range(13, 19, 2):
            fed = ids[:, start : start + 2]
            positions = torch.arange(start, start + 2)[None]
            if detour:
                fed = torch.cat([fed, random_ids(2, removed, seed=start)], dim=1)
                positions = torch.arange(start, start + 2 + removed)[None]
            model(fed, position_ids=positions, **{cache_argument(model.forward): cache})
            if detour:
                cache.crop(-removed)
        for layer in cache.layers:
            if hasattr(layer, "record_past"):
                layer.record_past = False
        positions = torch.arange(19, 30)[None]
        output = model(
            ids[:, 19:], position_ids=positions, **{cache_argument(model.forward): cache}
        )
        results.append(output.logits)
    assert largest_difference(results[1], results[0]) < 2e-4


@every_case
def test_narrow_states_decode_as_they_prefill(case: str) -> None:
    """One token at a time is what several at a time gives, to the rounding of the states."""
    model = narrow(case).converted
    ids = random_ids(2, NUM_TOKENS)
    steps = logits_in_pieces(model, ids, [1] * NUM_TOKENS)
    pieces = logits_in_pieces(model, ids, equal_pieces(NUM_TOKENS, 3))
    assert largest_difference(steps, pieces) < 1e-2
    assert narrow(case).plan.state_ratio >= 1.5


@every_case
def test_compression_disabled(case: str) -> None:
    from cacheshrink_hybrid import compression_disabled

    source = tiny_model(case)
    settings = {"state_ratio": 2.0, "state_dtype": "int8", "store_original_weights": True}
    converted = converted_copy(source, **settings)
    ids = random_ids(2, NUM_PREFILL)
    expected = logits_of(source, ids)
    with compression_disabled(converted):
        assert torch.equal(logits_of(converted, ids), expected)
    assert not torch.equal(logits_of(converted, ids), expected) or case.startswith("qwen")
