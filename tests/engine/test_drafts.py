"""Drafts make answers come sooner, and change nothing of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid.engine import LLM, RequestOutput, SamplingParams
from cacheshrink_hybrid.engine.runner import Runner
from cacheshrink_hybrid.engine.sampling import choose_token, token_scores
from cacheshrink_hybrid.errors import NotSupportedError
from tests.engine.idle import assert_idle
from tests.engine.test_llm import MEMORY, prompts, tokens_of
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy
from tests.texts import TEXTS, word_tokenizer
from tests.tolerances import assert_same_logits

CONFIG = {"num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "exact": {"cache_bits": "auto", "exact_sinks": 2, "exact_window": 6},
    "mistral-window": {},
    "bamba": {},
    "coded states": {"state_ratio": 2.0, "state_dtype": "int8", "replay_length": 3},
    "qwen3_next": {},
}
CASE_OF = {"exact": "llama", "coded states": "bamba"}
HYBRIDS = ("bamba", "coded states", "qwen3_next")
QUICK = [
    name if name in ("exact", "coded states") else pytest.param(name, marks=pytest.mark.slow)
    for name in SETTINGS
]


@cache
def model_of(name: str) -> PreTrainedModel:
    source = tiny_model(CASE_OF.get(name, name))
    return converted_copy(source, 4.0, "auto", metric="activation", **SETTINGS[name])


def engine(name: str, *, drafts: bool = True, **settings) -> LLM:
    # A coded state is rounded where a piece of a prompt ends, so prompts are fed whole.
    given = {"cache_memory": MEMORY, "speculative_config": CONFIG if drafts else None, **settings}
    return LLM(model_of(name), **given)


def repetitive(count: int = 6) -> list[list[int]]:
    """Prompts in which most tokens have been seen before."""
    return [(3 * prompt)[: 20 + number] for number, prompt in enumerate(prompts(count))]


def both(
    name: str, given: Sequence[Any], wishes: Any, **settings
) -> tuple[list[RequestOutput], LLM]:
    """Outputs that are those without drafts, some of which stayed and some not."""
    llm = engine(name, **settings)
    outputs = llm.generate(given, wishes)
    due = engine(name, drafts=False).generate(given, wishes)
    assert tokens_of(outputs) == tokens_of(due)
    assert [x.finish_reason for x in outputs] == [x.finish_reason for x in due]
    counts = llm.statistics.speculation
    assert 0 < counts.accepted_tokens < counts.draft_tokens
    assert counts.drafts <= counts.draft_tokens
    assert_idle(llm)
    return outputs, llm


@pytest.mark.parametrize("replay_length", [1, 3])
def test_tokens_read_at_once_meet_states_as_coded_as_one_by_one(replay_length: int) -> None:
    """What follows a boundary reads the state behind its code, as in steps of one token."""
    settings = {**SETTINGS["coded states"], "replay_length": replay_length}
    model = converted_copy(tiny_model("bamba"), 4.0, "auto", metric="activation", **settings)
    runner, (prompt, more) = Runner(model, MEMORY, backend="torch"), ([3, 8, 5, 9], [7, 4, 6, 8, 5])
    for name in ("one by one", "at once"):
        runner.store.create(name)
        runner.store.reserve([name], [len(prompt)])
        runner.prefill(name, prompt)
    due = []
    for token in more:
        runner.store.reserve(["one by one"], [1])
        due.append(runner.decode(["one by one"], [token])[0])
    runner.store.reserve(["at once"], [len(more)])
    found = runner.verify(["at once"], [more])[0]
    assert_same_logits(found, torch.stack(due))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("name", QUICK)
def test_greedy_outputs_are_those_without_drafts(name: str, backend: str) -> None:
    if backend == "cpu":
        pytest.importorskip("numba")
    _, llm = both(name, repetitive(), SamplingParams(max_tokens=40), backend=backend)
    plain = engine(name, drafts=False)
    plain.generate(repetitive(), SamplingParams(max_tokens=40))
    assert llm.statistics.steps < plain.statistics.steps


@pytest.mark.parametrize("name", QUICK)
def test_seeded_samples_are_those_without_drafts(name: str) -> None:
    wish = SamplingParams(max_tokens=30, temperature=0.4, seed=5, n=3)
    outputs, _ = both(name, repetitive(3), wish)
    assert len(set(tokens_of(outputs))) > 3


WISHES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.05},
    {"logit_bias": {7: 2.0, 9: 2.5}, "allowed_token_ids": tuple(range(4, 30))},
    {"stop_token_ids": tuple(range(3, 60, 3)), "min_tokens": 12, "ignore_eos": True},
    {"logprobs": 2, "top_k": 5, "temperature": 0.2, "seed": 3},
]


@pytest.mark.parametrize("wishes", WISHES, ids=lambda wishes: next(iter(wishes)))
@pytest.mark.parametrize("name", ["exact", pytest.param("bamba", marks=pytest.mark.slow)])
def test_wishes_hold_for_every_token_of_a_step(name: str, wishes: dict[str, Any]) -> None:
    wish = SamplingParams(max_tokens=40, **wishes)
    outputs, _ = both(name, repetitive(), wish)
    due = engine(name, drafts=False).generate(repetitive(), wish)
    for output, expected in zip(outputs, due, strict=True):
        assert (output.logprobs is None) == (wish.logprobs is None)
        for ours, theirs in zip(output.logprobs or (), expected.logprobs or (), strict=True):
            assert (ours.token_id, ours.rank) == (theirs.token_id, theirs.rank)
            assert ours.value == pytest.approx(theirs.value, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", pytest.param("bamba", marks=pytest.mark.slow)])
def test_texts_end_where_they_did(name: str) -> None:
    """Stop strings, forms and forbidden words, with text behind them in the same step."""
    pytest.importorskip("llguidance")
    tokenizer = word_tokenizer()
    plain = LLM(model_of(name), tokenizer, cache_memory=MEMORY)
    drafting = LLM(model_of(name), tokenizer, cache_memory=MEMORY, speculative_config=CONFIG)
    text = " ".join(3 * [TEXTS[0]])
    words = plain.generate(text, SamplingParams(max_tokens=40))[0].text.split()
    word = words[len(words) // 2]
    for wish in (
        SamplingParams(max_tokens=40, stop=[word], min_tokens=6),
        SamplingParams(max_tokens=40, bad_words=[word]),
        SamplingParams(max_tokens=40, regex=r"( ?(the|a|of|to|and)){9}"),
    ):
        (due,), (output,) = plain.generate(text, wish), drafting.generate(text, wish)
        assert (output.token_ids, output.text) == (due.token_ids, due.text)
        assert output.finish_reason == due.finish_reason
        streamed = [x.token_ids for x in drafting.stream(text, wish)]
        lengths = range(1, len(due.token_ids) + 1)
        assert streamed == [due.token_ids[:length] for length in lengths]
    assert drafting.statistics.speculation.accepted_tokens > 0
    assert_idle(drafting)


STARTING_OVER = [name for name in SETTINGS if name not in ("mistral-window", "bamba")]
"""Windows give frames back before anybody has to; and no draft stays of what `bamba` draws."""


@pytest.mark.parametrize(
    "name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in STARTING_OVER]
)
def test_requests_that_start_over(name: str) -> None:
    """In a pool that is too small for all of them, drafts let nobody start over more often."""
    wish = SamplingParams(max_tokens=50, temperature=0.3, seed=1, ignore_eos=True)
    roomy = engine(name).store
    frames = 3 * roomy.need(80) // 2 + 2
    small = {"cache_memory": frames * roomy.layout.frame_bytes, "prefix_cache": False}
    _, llm = both(name, repetitive(), wish, **small)
    plain = engine(name, drafts=False, **small)
    plain.generate(repetitive(), wish)
    assert 0 < llm.statistics.preemptions <= plain.statistics.preemptions


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_requests_of_all_kinds(name: str) -> None:
    """With prefixes kept, aborts, and a pool that is always full."""
    random = np.random.default_rng(len(name))
    layout = engine(name).store.layout
    frames = 2 * engine(name).store.need(120) + 3 * layout.state.num_frames + 4
    llm = engine(name, cache_memory=frames * layout.frame_bytes, max_batch=4)
    cold = engine(name, drafts=False, prefix_cache=False)
    waiting = {number: (2 * prompt)[:30] for number, prompt in enumerate(4 * repetitive())}
    wishes = {
        number: SamplingParams(max_tokens=int(random.integers(1, 40)), ignore_eos=True)
        for number in waiting
    }
    due = {number: cold.generate(p, wishes[number])[0].token_ids for number, p in waiting.items()}
    found: dict[Any, tuple[int, ...]] = {}
    aborted = set()
    left = list(waiting)
    while left or llm.has_requests:
        while left and random.random() < 0.5:
            number = left.pop(0)
            llm.add_request(waiting[number], wishes[number], request_id=number)
        open_ids = [request.request_id for request in llm.requests]
        if open_ids and random.random() < 0.03:
            aborted.add(open_ids[0])
            llm.abort(open_ids[0])
        found |= {x.request_id: x.token_ids for x in llm.step() if x.finished}
        llm.store.check_integrity()
    assert set(found) | aborted == set(due)
    # A coded state is rounded where a prefix ends.
    if name != "coded states":
        assert all(tokens == due[number] for number, tokens in found.items())
    assert llm.statistics.speculation.accepted_tokens > 0
    assert_idle(llm)


def test_a_draft_stays_as_often_as_its_token_is_drawn() -> None:
    """Outputs of many seeds have the shares that the model's probabilities say."""
    logits = torch.tensor([[1.0, 0.3, -0.2, 0.8]])
    params = SamplingParams(temperature=1.0, seed=0)
    (scores,) = token_scores(logits)
    drawn = [
        choose_token(scores, params, torch.Generator().manual_seed(seed)) for seed in range(4000)
    ]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert shares == pytest.approx(logits.softmax(-1)[0].numpy(), abs=0.03)


def test_samples_without_a_seed_have_the_probabilities_of_the_model() -> None:
    """Three tokens behind a prompt, by Pearson's sum: chance goes beyond 1 time in 10,000."""
    prompt, allowed, temperature, count = [5, 6, 7] * 4, (5, 6, 7), 0.7, 400
    texts = torch.tensor([[*prompt, a, b] for a, b in product(allowed, repeat=2)])
    with torch.no_grad():
        logits = model_of("llama")(texts).logits[:, -3:, allowed]
    first, second, third = (logits / temperature).softmax(-1).unbind(1)
    due = (first[0].repeat_interleave(3) * second[::3].flatten()).unsqueeze(-1) * third
    llm = engine("llama")
    torch.manual_seed(4)
    wish = SamplingParams(n=count, max_tokens=3, temperature=temperature, allowed_token_ids=allowed)
    drawn = [9 * a + 3 * b + c - 65 for a, b, c in tokens_of(llm.generate(prompt, wish))]
    assert llm.statistics.speculation.accepted_tokens > 0
    expected = count * due.flatten().numpy()
    found = np.bincount(drawn, minlength=len(expected))
    assert np.sum((found - expected) ** 2 / expected) < 61


def test_drafts_end_where_the_text_does() -> None:
    """No frames are asked for beyond the last token of a request."""
    wish = SamplingParams(max_tokens=6, ignore_eos=True)
    llm = engine("llama", prefix_cache=False)
    (output,) = llm.generate([5, 6] * 10, wish)
    assert len(output.token_ids) == 6
    layout = llm.store.layout
    tight = (llm.store.need(26) + 1) * layout.frame_bytes
    small = engine("llama", prefix_cache=False, cache_memory=tight)
    assert small.generate([5, 6] * 10, wish)[0].token_ids == output.token_ids
    assert small.statistics.preemptions == 0


def test_models_that_do_not_go_on_in_pieces_are_refused() -> None:
    source = tiny_model("mamba")
    LLM(source, cache_memory=MEMORY)
    with pytest.raises(NotSupportedError, match="speculative_config does not go with mamba,"):
        LLM(source, cache_memory=MEMORY, speculative_config=CONFIG)
