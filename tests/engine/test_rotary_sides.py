"""Frequencies that change with the length of a text: the engine says what `generate()` says."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid.engine import LLM, PrefixCache, SamplingParams
from cacheshrink_hybrid.engine.rotary_sides import RotarySides
from cacheshrink_hybrid.pool.prefixes.lookup import OTHER_ANGLES
from tests.engine.idle import assert_idle
from tests.engine.test_prefix_reuse import DENSE
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids

LIMIT, CHUNK, MEMORY = 48, 16, 8 << 20
WISH = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
GREEDY: dict[str, Any] = {
    "max_new_tokens": 8,
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 0,
}
FACTORS = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.2, 1.4, 1.6],
    "long_factor": [3.0, 6.0, 9.0, 12.0],
    "original_max_position_embeddings": LIMIT,
}
LENGTHS = {
    "below": 30,
    "up to the limit": LIMIT - 7,
    "crossing": LIMIT - 3,
    "at the limit": LIMIT,
    "one beyond": LIMIT + 1,
    "beyond": 90,
}
KINDS = ["source", "full rank", "coded", "exact"]


@cache
def model_of(kind: str, model_type: str = "phi3") -> PreTrainedModel:
    own: dict[str, Any] = {}
    if model_type == "phimoe":
        own = {"rope_parameters": {**FACTORS, "short_mscale": 1.0, "long_mscale": 1.5}}
    else:
        own = {"rope_parameters": FACTORS}
    source = tiny_model(
        "phi3-longrope" if model_type == "phi3" else model_type,
        original_max_position_embeddings=LIMIT,
        max_position_embeddings=512,
        initializer_range=0.4,
        **own,
    )
    with torch.no_grad():  # so that attention looks at few tokens, and angles matter
        for name, weight in source.named_parameters():
            if "qkv_proj" in name or "q_proj" in name:
                weight.mul_(6)
    if kind == "source":
        return source
    if kind == "full rank":
        return converted_copy(source)
    exact = {"exact_sinks": 2, "exact_window": 6} if kind == "exact" else {}
    exact["cache_bits"] = "auto"
    return converted_copy(source, 4.0, "auto", metric="activation", **exact)


def text(length: int, seed: int = 0) -> list[int]:
    return random_ids(1, length, seed=seed)[0].tolist()


def said(model: PreTrainedModel, prompt: list[int]) -> tuple[int, ...]:
    found = model.generate(input_ids=torch.tensor([prompt]), **GREEDY)
    return tuple(found[0, len(prompt) :].tolist())


def engine(model: PreTrainedModel, **settings: Any) -> LLM:
    return LLM(model, cache_memory=MEMORY, **{"prefill_chunk": CHUNK, **settings})


def test_the_sides_differ() -> None:
    """Otherwise nothing here would say anything."""
    model, ids = model_of("source"), torch.tensor([text(LIMIT)])
    with RotarySides(model).reading(1), torch.no_grad():
        long = model(input_ids=ids).logits
    with torch.no_grad():
        assert (long - model(input_ids=ids).logits).abs().max() > 0.1 * long.std()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_prompts_of_several_chunks(kind: str, length: int) -> None:
    model, prompt = model_of(kind), text(length)
    llm = engine(model)
    (output,) = llm.generate([prompt], WISH)
    assert output.token_ids == said(model, prompt)
    crosses = length <= LIMIT < length + WISH.max_tokens - 1
    assert output.preemptions == crosses
    assert_idle(llm)


@pytest.mark.parametrize("kind", ["source", "full rank"])
def test_another_family(kind: str) -> None:
    model = model_of(kind, "phimoe")
    prompts = [text(length) for length in LENGTHS.values()]
    outputs = engine(model).generate(prompts, WISH)
    assert [output.token_ids for output in outputs] == [said(model, one) for one in prompts]


@pytest.mark.parametrize("kind", KINDS)
def test_requests_of_both_sides_run_together(kind: str) -> None:
    model = model_of(kind)
    prompts = [text(length, seed) for seed, length in enumerate(LENGTHS.values())]
    llm = engine(model, prefix_cache=False, prefill_chunk=512)
    wish = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, logprobs=1)
    outputs = llm.generate(prompts, wish)
    assert [output.token_ids for output in outputs] == [said(model, one) for one in prompts]
    assert_idle(llm)
    for together, prompt in zip(outputs, prompts, strict=True):
        (alone,) = engine(model, prefix_cache=False).generate([prompt], wish)
        found = [entry.value for entry in together.logprobs]
        assert found == pytest.approx([entry.value for entry in alone.logprobs], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_prefixes_of_each_side_help_that_side_alone(kind: str) -> None:
    model, shared = model_of(kind), text(32)
    short = [shared + text(3, seed) for seed in (1, 2)]
    long = [shared + text(30, seed) for seed in (1, 2)]
    llm = engine(model, prefix_placement=DENSE)
    cached = []
    for prompt in (short[0], long[0], short[1], long[1]):
        (output,) = llm.generate([prompt], WISH)
        assert output.token_ids == said(model, prompt)
        cached.append(output.num_cached_tokens)
    assert cached[:2] == [0, 0]
    assert min(cached[2:]) >= 32
    llm.store.check_integrity()


def test_continuations_and_drafts_over_the_limit() -> None:
    model = model_of("full rank")
    prompt = (text(6) * 8)[: LIMIT - 4]
    due = said(model, prompt)
    drafting = engine(
        model, speculative_config={"num_speculative_tokens": 5, "prompt_lookup_max": 3}
    )
    assert drafting.generate([prompt], WISH)[0].token_ids == due
    wish = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, n=3, prompt_logprobs=1)
    outputs = engine(model).generate([prompt], wish)
    assert [output.token_ids for output in outputs] == [due] * 3


@pytest.mark.parametrize("length", [LIMIT - 3, LIMIT + 20])
def test_no_draft_crosses_the_limit(length: int) -> None:
    """A proposer that knows what will be said drafts as far as it may."""
    model, prompt = model_of("full rank"), text(length)
    due = said(model, prompt)
    llm = engine(model, speculative_config={"num_speculative_tokens": 6, "prompt_lookup_max": 3})
    whole = [*prompt, *due]
    requests = llm._intake.requests(tuple(prompt), WISH, llm._loose)
    requests[0].proposer = lambda tokens, count: whole[len(tokens) :][: max(count, 0)]
    llm._dispatcher.submit(requests)
    while llm.has_requests:
        llm.step()
    assert tuple(requests[0].tokens[length:]) == due
    assert llm.statistics.speculation.accepted_tokens > 0


def test_prompt_logprobs_are_of_the_whole_text() -> None:
    model, prompt = model_of("source"), text(90)
    wish = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=0)
    (output,) = engine(model).generate([prompt], wish)
    with torch.no_grad():
        due = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
    for place, entry in enumerate(output.prompt_logprobs[1:]):
        assert entry.value == pytest.approx(due[place, prompt[place + 1]].item(), abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_cache_of_generate(kind: str) -> None:
    model, shared = model_of(kind), text(40)
    prompts = [
        shared + text(more, seed)
        for more, seed in ((3, 1), (30, 1), (3, 2), (30, 2), (LIMIT - 40, 3), (LIMIT - 39, 3))
    ]
    due = [said(model, prompt) for prompt in prompts]
    with PrefixCache(model, max_bytes=MEMORY, prefill_chunk=CHUNK, placement=DENSE) as prefixes:
        for prompt, expected in zip(prompts, due, strict=True):
            assert said(model, prompt) == expected
    assert prefixes.statistics.saved_tokens >= 4 * 32


def test_prefix_cache_of_batches_has_the_side_of_the_longest_row() -> None:
    model, shared = model_of("source"), text(40)
    rows = [shared[:20], shared + text(30, 1)]
    ids = torch.tensor([[0] * 50 + rows[0], rows[1]])
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(70) >= torch.tensor([[50], [0]]))}
    due = model.generate(**inputs, **GREEDY)
    with PrefixCache(model, max_bytes=MEMORY, prefill_chunk=CHUNK) as prefixes:
        said(model, shared)
        for _ in range(2):
            assert torch.equal(model.generate(**inputs, **GREEDY), due)
    assert prefixes.statistics.saved_tokens > 0


@pytest.mark.parametrize("converted", [True, False])
def test_nothing_is_kept_where_every_length_has_its_own_angles(converted: bool) -> None:
    source = tiny_model("llama-dynamic", max_position_embeddings=LIMIT, initializer_range=0.4)
    model = converted_copy(source) if converted else source
    prompts = [text(30), text(30) + text(40, 1), text(30) + text(10, 2)]
    due = [said(model, prompt) for prompt in prompts]
    with PrefixCache(model, max_bytes=MEMORY, prefill_chunk=CHUNK) as prefixes:
        for prompt, expected in zip(prompts, due, strict=True):
            assert said(model, prompt) == expected
    assert prefixes.statistics.misses[OTHER_ANGLES] == 1
    assert prefixes.statistics.saved_tokens >= 29


def test_reading_changes_nothing_for_other_threads() -> None:
    model = model_of("source")
    sides, found = RotarySides(model), []

    def read() -> None:
        with torch.no_grad():
            found.append(model.model.rotary_emb(torch.zeros(1), torch.arange(30)[None])[0])

    read()
    with sides.reading(1):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        read()
    read()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[3])
    assert found[2].shape == found[0].shape
    assert not torch.equal(found[0], found[2])
    assert not model.model.rotary_emb._forward_hooks
    assert not model.model.rotary_emb._forward_pre_hooks


def test_limits_and_rooms() -> None:
    sides = RotarySides(model_of("source"))
    assert sides.limits == [LIMIT]
    assert sides.longest is None
    assert [sides.side(n) for n in (1, LIMIT, LIMIT + 1, 500)] == [0, 0, 1, 1]
    assert [sides.room(n) for n in (LIMIT - 2, LIMIT, LIMIT + 1)] == [2, 0, None]
    assert RotarySides(tiny_model("llama")).limits == []
    assert RotarySides(tiny_model("llama-dynamic")).longest == 256
