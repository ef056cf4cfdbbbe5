"""`generate()` with prompts that begin alike: what it gives is what it would have given."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.engine import PrefixCache
from cacheshrink_hybrid.errors import CacheFullError, ConfigError, NotSupportedError
from cacheshrink_hybrid.pool.prefixes.lookup import (
    FORGOTTEN,
    NO_PREFIX,
    TOO_LONG,
    UNEVEN,
    WHOLE_PROMPTS,
)
from tests.engine.test_prefix_reuse import ANYWHERE, DENSE, SETTINGS, model_of, text
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy

CASES = [*SETTINGS, "source of bamba", "source of llama"]
GREEDY: dict[str, Any] = {
    "max_new_tokens": 6,
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def case_model(name: str) -> PreTrainedModel:
    if name.startswith("source of "):
        return tiny_model(name.removeprefix("source of "), max_position_embeddings=4096)
    return model_of(name)


def prefixes_of(model: PreTrainedModel, **settings: Any) -> PrefixCache:
    return PrefixCache(
        model, **{"max_bytes": 8 << 20, "prefill_chunk": 64, "placement": DENSE, **settings}
    )


def batch(*rows: list[int]) -> dict[str, Tensor]:
    """Rows, padded on the left."""
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def generated(model: PreTrainedModel, inputs: dict[str, Tensor], **wish: Any) -> list[list[int]]:
    return model.generate(**inputs, **GREEDY, **wish).tolist()


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_plain_calls(name: str) -> None:
    model, shared = case_model(name), text(90, 0)
    prompts = [batch(shared + text(20, seed)) for seed in (1, 2, 3)]
    due = [generated(model, prompt) for prompt in prompts]
    with prefixes_of(model) as prefixes:
        assert [generated(model, prompt) for prompt in prompts] == due
    assert prefixes.statistics.saved_tokens >= (180 if name in ANYWHERE else 64 + 90)
    assert "generate" not in vars(model)
    assert prefixes.store.seq_ids == []
    prefixes.store.check_integrity()


@pytest.mark.parametrize("name", CASES)
def test_a_repeat_is_equal_to_the_bit(name: str) -> None:
    """Whatever was computed the first time is there the second time."""
    model = case_model(name)
    prompt, wish = batch(text(90, 0)), {"output_logits": True, "return_dict_in_generate": True}
    with prefixes_of(model, state_dtype="live") as prefixes:
        first, second = (model.generate(**prompt, **GREEDY, **wish) for _ in range(2))
    assert prefixes.statistics.saved_tokens == 89
    for one, other in zip(first.logits, second.logits, strict=True):
        assert torch.equal(one, other)


def test_kept_states_are_rounded_once_by_default() -> None:
    """To 16 bits, of which logits that are compared as float32 show hardly anything."""
    model = case_model("source of bamba")
    prompt, wish = batch(text(90, 0)), {"output_logits": True, "return_dict_in_generate": True}
    with prefixes_of(model) as prefixes:
        first, second = (model.generate(**prompt, **GREEDY, **wish) for _ in range(2))
    assert prefixes.store.prefixes.codes is not None
    assert prefixes.statistics.saved_tokens == 89
    assert torch.equal(first.sequences, second.sequences)
    assert not torch.equal(first.logits[0], second.logits[0])
    torch.testing.assert_close(first.logits[0], second.logits[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 5},
    ],
)
@pytest.mark.parametrize("name", [name for name in CASES if name != "coded states"])
def test_padded_batches(name: str, wish: dict[str, Any]) -> None:
    model, shared = case_model(name), text(50, 0)
    inputs = batch(*(shared + text(count, count) for count in (7, 20, 13)), [5])
    arguments = {**inputs, **GREEDY, **wish}
    with prefixes_of(model) as prefixes:
        found = []
        for serve in (type(model).generate, PrefixCache.generate):
            torch.manual_seed(0)
            one: Any = model if serve is type(model).generate else prefixes
            found.append(serve(one, **arguments).tolist())
    assert found[0] == found[1]
    assert prefixes.statistics.lookups == 4
    assert prefixes.statistics.saved_tokens >= 50


def test_padding_that_rings_do_not_have() -> None:
    """States are coded every 5 tokens, counted from where a sequence begins."""
    model, shared = model_of("coded states"), text(50, 0)
    for counts, uneven in (((7, 20), 2), ((10, 20), 0)):
        inputs = batch(*(shared + text(count, count) for count in counts))
        due = generated(model, inputs)
        with prefixes_of(model) as prefixes:
            assert generated(model, inputs) == due
        assert prefixes.statistics.misses.get(UNEVEN, 0) == uneven


def test_padding_that_keys_were_not_rotated_for() -> None:
    model = converted_copy(tiny_model("llama"), 2.0, "rotate")
    inputs = batch(text(30, 0), text(20, 1))
    due = generated(model, inputs)
    with prefixes_of(model) as prefixes:
        assert generated(model, inputs) == due
        assert prefixes.statistics.misses == {UNEVEN: 2}
        even = batch(text(30, 0), text(30, 0))
        assert generated(model, even)[0] == due[0]
    assert prefixes.statistics.saved_tokens == 29


def test_caches_for_calls_of_ones_own() -> None:
    model, prompt = model_of("bamba"), batch(text(40, 0))
    due = generated(model, prompt)
    prefixes = prefixes_of(model)
    for num_saved in (0, 39):
        cache = prefixes.cache_for(**prompt)
        assert cache.get_seq_length() == 39
        assert prefixes.statistics.saved_tokens == num_saved
        assert generated(model, prompt, **{cache_argument(model): cache}) == due
        assert cache.get_seq_length() == 45
    prefixes.store.prefixes.clear()
    assert prefixes.store.pool.num_held == 0


@pytest.mark.parametrize(
    "wish",
    [
        {"use_cache": False},
        {"cache_implementation": "dynamic"},
        {"prompt_lookup_num_tokens": 2},
    ],
)
def test_calls_that_go_through_as_they_are(wish: dict[str, Any]) -> None:
    model, prompt = tiny_model("llama"), batch(text(40, 0))
    due = generated(model, prompt, **wish)
    with prefixes_of(model) as prefixes:
        assert generated(model, prompt, **wish) == due
        padded = batch(text(30, 0), text(20, 1))
        del padded["attention_mask"]
        generated(model, padded)
        embedded = model.get_input_embeddings()(prompt["input_ids"])
        model.generate(inputs_embeds=embedded, **GREEDY)
        both = {**prompt, "inputs_embeds": embedded.flip(1)}
        due = type(model).generate(model, **both, **GREEDY)
        assert torch.equal(model.generate(**both, **GREEDY), due)
        del model.generate  # by somebody else: leaving finds nothing to take away
    assert prefixes.statistics.lookups == 0


def test_a_prompt_that_finds_nothing_is_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for its last token, which is left to `generate()`."""
    model = model_of("llama")
    prefixes = PrefixCache(model, max_bytes=8 << 20)
    fed: list[int] = []
    prefill = prefixes._runner.prefill

    def counting(seq_id: int, tokens: list[int], **settings: Any) -> torch.Tensor:
        fed.append(len(tokens))
        return prefill(seq_id, tokens, **settings)

    monkeypatch.setattr(prefixes._runner, "prefill", counting)
    prefixes.cache_for(torch.arange(1200)[None] % 90)
    assert fed == [1199]


def test_what_does_not_fit_is_computed_by_itself() -> None:
    model = model_of("bamba")
    layout = prefixes_of(model).store.layout
    prefixes = prefixes_of(model, max_bytes=(layout.frames_for(60) + 1) * layout.frame_bytes)
    for prompt, reasons in ((text(500, 0), {TOO_LONG: 1}), (text(50, 0), {NO_PREFIX: 1})):
        inputs = batch(prompt)
        before = prefixes.statistics.misses
        assert prefixes.generate(**inputs, **GREEDY).tolist() == generated(model, inputs)
        assert prefixes.statistics.misses == {**before, **reasons}


def test_a_change_of_the_model_forgets_everything() -> None:
    model, prompt = copy.deepcopy(model_of("llama")), batch(text(40, 0))
    with prefixes_of(model) as prefixes:
        before = generated(model, prompt)
        with torch.no_grad():
            model.lm_head.weight.mul_(-1)
        after = generated(model, prompt)
    assert before != after == generated(model, prompt)
    assert prefixes.statistics.misses == {NO_PREFIX: 1, FORGOTTEN: 1}


def test_prompts_that_are_taken_whole() -> None:
    model, prompt = tiny_model("jamba"), batch(text(20, 0))
    due = generated(model, prompt)
    with prefixes_of(model) as prefixes:
        assert generated(model, prompt) == due
    assert prefixes.statistics.misses == {WHOLE_PROMPTS: 1}


def test_refusals() -> None:
    model = model_of("llama")
    prefixes = prefixes_of(model)
    with prefixes, pytest.raises(NotSupportedError, match="leave that first"), prefixes:
        pass
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ConfigError, match="rows of at least one token"):
        prefixes.cache_for(ids[:, :0])
    with pytest.raises(ConfigError, match="give the mask of these tokens"):
        prefixes.cache_for(ids, torch.ones(1, 2))
    for mask in ([[1, 1, 0]], [[1, 0, 1]], [[0, 0, 0]]):
        with pytest.raises(NotSupportedError, match="pad on the left"):
            prefixes.cache_for(ids, torch.tensor(mask))
    with pytest.raises(NotSupportedError, match="recurrent layers only"):
        PrefixCache(tiny_model("mamba2"))
    with pytest.raises(ConfigError, match="prefill_chunk=0"):
        PrefixCache(model, prefill_chunk=0)
    with pytest.raises(ConfigError, match="prefill_chunk='x' must be a whole number"):
        PrefixCache(model, prefill_chunk="x")
    with pytest.raises(CacheFullError, match="give at least"):
        PrefixCache(model_of("bamba"), max_bytes=1000)
