"""The pooled cache gives what the dense one gives, whatever is done to it, and keeps its frames."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cacheshrink_hybrid import HybridCache, LatentCache, cache_bytes, make_cache
from cacheshrink_hybrid.caches.planned_layout import layout_of
from cacheshrink_hybrid.caches.pooled_layers import PooledLinearLayer
from cacheshrink_hybrid.errors import CacheFullError, NotSupportedError, UnsupportedModelError
from cacheshrink_hybrid.families import model_spec
from tests.dispatch import run_torch
from tests.families.tiny_configs import CASES, tiny_model
from tests.models import converted_copy, logits_in_pieces, pair, prefill_then_decode, random_ids
from tests.tolerances import assert_same_computation


@pytest.fixture(autouse=True)
def torch_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with other caches, to the bit."""
    run_torch(monkeypatch)


BATCH, NUM_TOKENS = 2, 26
SOME_CASES = ("gpt2", "llama", "mistral-window", "gemma3_text", "bamba", "falcon_h1", "qwen3_next")
GREEDY = {"do_sample": False, "max_new_tokens": 12}


def model_of(case: str) -> PreTrainedModel:
    return pair(case, "auto", ratio=4.0, metric="activation").converted


def dense(model: PreTrainedModel) -> LatentCache:
    return LatentCache(config=model.config)


def both(model: PreTrainedModel) -> tuple[LatentCache, HybridCache]:
    return dense(model), make_cache(model)


def check(cache: HybridCache) -> None:
    assert cache.store is not None
    cache.store.check_integrity()


@torch.no_grad()
def feed(model: PreTrainedModel, cache: LatentCache, ids: Tensor, begin: int) -> Tensor:
    positions = torch.arange(begin, begin + ids.shape[1]).expand(len(ids), -1)
    return model(ids, position_ids=positions, past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("case", ["llama", "mistral-window", "falcon_h1"])
def test_a_step_reads_the_history_of_each_layer_once(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(case)
    cache = make_cache(model)
    feed(model, cache, random_ids(BATCH, 9), 0)
    feed(model, cache, random_ids(BATCH, 1), 9)
    seen = []
    read = HybridCache.read

    def counted(self: HybridCache, layer_idx: int, *args, **kwargs) -> Tensor:
        seen.append(layer_idx)
        return read(self, layer_idx, *args, **kwargs)

    monkeypatch.setattr(HybridCache, "read", counted)
    feed(model, cache, random_ids(BATCH, 1), 10)
    assert seen == [layer.layer_idx for layer in model_spec(model.config).attention_layers]


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_dense_cache(case: str) -> None:
    for model in (pair(case).source, model_of(case)):
        ids = random_ids(BATCH, NUM_TOKENS)
        pieces = prefill_then_decode(NUM_TOKENS, 15)
        if model_spec(model.config).continues_in_pieces:
            pieces = [7, 5, *prefill_then_decode(NUM_TOKENS - 12, 6)]
        pooled = make_cache(model)
        expected = logits_in_pieces(model, ids, pieces, dense(model))
        actual = logits_in_pieces(model, ids, pieces, pooled)
        assert_same_computation(actual, expected)
        check(pooled)
        assert pooled.store.num_tokens(0) == NUM_TOKENS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coded_rows(dtype: torch.dtype) -> None:
    model = converted_copy(
        tiny_model("llama", dtype=dtype), 4.0, "auto", metric="activation", cache_bits="auto"
    )
    ids = random_ids(BATCH, NUM_TOKENS)
    expected, actual = (logits_in_pieces(model, ids, [12, *[1] * 14], c) for c in both(model))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("case", SOME_CASES)
def test_everything_lies_in_frames(case: str) -> None:
    model, cache = model_of(case), make_cache(model_of(case))
    logits_in_pieces(model, random_ids(BATCH, NUM_TOKENS), [15, *[1] * 11], cache)
    frame_bytes = cache.store.pool.frame_bytes
    counted = cache_bytes(cache)
    held = cache.store.statistics().frames
    assert counted.total == cache.nbytes() == held.held * frame_bytes
    assert counted.state == held.by_kind.get("state", 0) * frame_bytes
    assert (counted.state > 0) == any(isinstance(x, PooledLinearLayer) for x in cache.layers)
    arena = cache.store.pool.arena.untyped_storage().data_ptr()
    for layer in cache.layers:
        if isinstance(layer, PooledLinearLayer):
            for states in (layer.conv_states, layer.recurrent_states):
                tensors = [tensor for tensor in states.values() if tensor is not None]
                assert all(t.untyped_storage().data_ptr() == arena for t in tensors)
    # Full classes waste less than a frame per sequence, windows less than two.
    classes = len(cache.store.layout.classes)
    useful = cache.store.statistics().useful_bytes
    assert counted.kv - useful <= (2 * classes * frame_bytes) * BATCH


@pytest.mark.parametrize("case", ["llama", "mistral-window", "bamba"])
def test_the_first_pass_is_in_the_pool_at_once(case: str) -> None:
    model, cache = model_of(case), make_cache(model_of(case))
    assert cache.nbytes() == 0
    feed(model, cache, random_ids(1, 60), 0)
    assert not cache.loose_states()
    layout = layout_of(model).layout
    assert cache.nbytes() == layout.frame_bytes * layout.frames_for(60)


@pytest.mark.parametrize("converted", [True, False])
@pytest.mark.parametrize("case", ["llama", "gpt2", "bamba"])
def test_made_of_a_config_alone(case: str, converted: bool) -> None:
    """Weights in another type than the config says."""
    model = copy.deepcopy(model_of(case) if converted else pair(case).source).bfloat16()
    model.config.dtype = torch.float32
    caches = make_cache(model), HybridCache(model.config)
    logits = [logits_in_pieces(model, random_ids(2, 12), [9, 1, 2], cache) for cache in caches]
    assert torch.equal(*logits)
    assert caches[0].planned == caches[1].planned == layout_of(model)
    assert not caches[1].loose_states()


@pytest.mark.parametrize("case", ["llama", "mistral-window", "bamba"])
def test_generate_makes_this_cache(case: str) -> None:
    output = model_of(case).generate(random_ids(1, 9), **GREEDY, return_dict_in_generate=True)
    assert type(output.past_key_values) is HybridCache
    check(output.past_key_values)


@pytest.mark.parametrize("case", ["llama", "bamba", "qwen3_next"])
def test_under_autocast(case: str) -> None:
    """Where layers give out tensors of two types; states that are not as planned stay outside."""
    for model in (pair(case).source, model_of(case)):
        caches = dense(model), make_cache(model), HybridCache(model.config)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            due, *logits = (
                logits_in_pieces(model, random_ids(2, 12), [9, 1, 2], cache) for cache in caches
            )
        assert all(torch.equal(found, due) for found in logits)


def test_models_that_no_config_tells_of_are_refused() -> None:
    config = AutoConfig.for_model("bloom", hidden_size=16, n_layer=1, n_head=2, vocab_size=9)
    with pytest.raises(UnsupportedModelError, match="model_type='bloom' is not converted"):
        make_cache(AutoModelForCausalLM.from_config(config))


MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "returned": {"num_beams": 3, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "sampled": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", SOME_CASES)
def test_generation_is_that_of_the_dense_cache(case: str, mode: str) -> None:
    model = model_of(case)
    batch = 1 if mode == "prompt lookup" else 2
    ids, mask = random_ids(batch, 14).repeat(1, 2), torch.ones(batch, 28, dtype=torch.long)
    mask[-1, :5] = 0 if batch > 1 else 1
    results = []
    for cache in both(model):
        torch.manual_seed(1)
        try:
            output = model.generate(
                ids, attention_mask=mask, past_key_values=cache, **{**GREEDY, **MODES[mode]}
            )
        except ValueError as error:
            output = str(error)
        results.append(output)
    if isinstance(results[0], str):
        assert results[1] == results[0]
    else:
        assert torch.equal(results[1], results[0])
        check(cache)


@pytest.mark.parametrize("case", ["llama", "gemma3_text", "bamba", "falcon_h1"])
def test_rows_of_the_batch_move(case: str) -> None:
    """Reordered, selected and repeated, each followed by steps."""
    model = model_of(case)
    ids = random_ids(6, 40)
    results = []
    for cache in both(model):
        logits = [feed(model, cache, ids[:3, :17], 0), feed(model, cache, ids[:3, 17:18], 17)]
        cache.reorder_cache(torch.tensor([2, 2, 0]))
        logits.append(feed(model, cache, ids[:3, 18:19], 18))
        if case in ("llama", "gemma3_text"):  # other layers of transformers do not know these
            cache.batch_select_indices(torch.tensor([2, 0]))
            logits.append(feed(model, cache, ids[:2, 19:20], 19))
            cache.batch_repeat_interleave(3)
            for t in range(20, 40):
                logits.append(feed(model, cache, ids[:, t : t + 1], t))
        results.append(torch.cat([part.flatten() for part in logits]))
    assert torch.equal(results[1], results[0])
    check(cache)


@pytest.mark.parametrize("case", ["llama", "mistral-window", "gemma3_text"])
def test_crop_and_continue(case: str) -> None:
    model, ids = model_of(case), random_ids(2, 40)
    results = []
    for cache in both(model):
        cache.activate_past_recording()
        logits = [feed(model, cache, ids[:, :20], 0)]
        cache.crop(0)
        for begin, end, back in ((20, 26, 4), (22, 25, 0), (25, 33, 8), (25, 27, 1)):
            logits.append(feed(model, cache, ids[:, begin:end], begin))
            cache.crop(-back)
            assert cache.get_seq_length() == end - back
        logits.append(feed(model, cache, ids[:, 26:30], 26))
        results.append(torch.cat([part.flatten() for part in logits]))
    assert torch.equal(results[1], results[0])
    check(cache)


def test_windows_stay_small_while_the_past_is_recorded() -> None:
    model, cache = model_of("mistral-window"), make_cache(model_of("mistral-window"))
    cache.activate_past_recording()
    feed(model, cache, random_ids(1, 20), 0)
    most = 0
    for t in range(20, 60):
        feed(model, cache, random_ids(1, 1), t)
        cache.crop(0)
        most = max(most, cache.store.pool.num_held)
    window = model.config.sliding_window
    T = cache.store.layout.classes[0].tokens_per_frame
    assert most <= window // T + 2


def test_what_has_left_a_window_cannot_come_back() -> None:
    model, cache = model_of("mistral-window"), make_cache(model_of("mistral-window"))
    ids = random_ids(1, 40)
    feed(model, cache, ids[:, :20], 0)
    for t in range(20, 40):
        feed(model, cache, ids[:, t : t + 1], t)
    held = cache.nbytes()
    with pytest.raises(NotSupportedError, match="left a window"):
        cache.crop(-9)
    assert (cache.get_seq_length(), cache.nbytes()) == (40, held)
    for tokens in (1, -41):
        with pytest.raises(ValueError, match="crop"):
            cache.crop(tokens)


@pytest.mark.parametrize("case", ["llama", "falcon_h1"])
def test_copies_are_independent(case: str) -> None:
    """As when one prefilled prompt serves many continuations."""
    model, ids = model_of(case), random_ids(1, 24)
    cache = make_cache(model)
    feed(model, cache, ids[:, :16], 0)
    feed(model, cache, ids[:, 16:17], 16)
    twin = copy.deepcopy(cache)
    feed(model, twin, ids[:, 3:4], 17)
    expected = dense(model)
    feed(model, expected, ids[:, :16], 0)
    feed(model, expected, ids[:, 16:17], 16)
    for t in range(17, 24):
        due = feed(model, expected, ids[:, t : t + 1], t)
        assert torch.equal(feed(model, cache, ids[:, t : t + 1], t), due)
    check(twin)
    assert twin.get_seq_length() == 18


@pytest.mark.parametrize("case", ["llama", "mistral-window", "bamba"])
def test_a_reset_cache_starts_again(case: str) -> None:
    model, ids = model_of(case), random_ids(2, 20)
    cache = make_cache(model)
    pieces = [10, *[1] * 10]
    expected = logits_in_pieces(model, ids, pieces, make_cache(model))
    logits_in_pieces(model, random_ids(2, 20, seed=5), pieces, cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(logits_in_pieces(model, ids, pieces, cache), expected)
    check(cache)


def test_frames_go_with_the_cache() -> None:
    model = model_of("bamba")
    cache = make_cache(model)
    logits_in_pieces(model, random_ids(1, 20), [10, *[1] * 10], cache)
    arena = weakref.ref(cache.store.pool.arena)
    del cache
    gc.collect()
    assert arena() is None


def test_an_upper_limit() -> None:
    model, ids = model_of("llama"), random_ids(1, 200)
    per_token = sum(row.width * 4 for row in layout_of(model).rows.values())
    cache = make_cache(model, max_bytes=per_token * 100)
    feed(model, cache, ids[:, :40], 0)
    with pytest.raises(CacheFullError, match=r"may take \d+; feed fewer"):
        for t in range(40, 200):
            feed(model, cache, ids[:, t : t + 1], t)
    assert t < 100
    assert cache.store.pool.nbytes <= per_token * 100


def test_another_batch_or_precision_is_refused() -> None:
    model, cache = model_of("llama"), make_cache(model_of("llama"))
    feed(model, cache, random_ids(2, 9), 0)
    feed(model, cache, random_ids(2, 1), 9)
    with pytest.raises(NotSupportedError, match="holds 2 sequences, and 3 were fed"):
        feed(model, cache, random_ids(3, 1), 10)
    other = make_cache(model)
    feed(model, other, random_ids(1, 9), 0)
    with pytest.raises(NotSupportedError, match="another model or in another precision"):
        feed(copy.deepcopy(model).double(), other, random_ids(1, 1), 9)
