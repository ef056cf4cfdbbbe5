"""Several continuations of one prompt, which is computed once for all of them."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.engine import LLM, SamplingParams
from tests.engine.idle import assert_idle
from tests.engine.test_llm import MEMORY, model_of, prompts, tokens_of

CASES = ("llama", "mistral-window", "bamba", "qwen3_next")
PROMPT = [5 + 3 * i % 40 for i in range(14)]


def wish(**settings) -> SamplingParams:
    return SamplingParams(**{"n": 4, "max_tokens": 9, "temperature": 1.0, "seed": 3, **settings})


def one_by_one(case: str, **settings) -> list[tuple[int, ...]]:
    """The same continuations as requests of their own, each with a whole prompt."""
    llm = LLM(model_of(case), cache_memory=MEMORY, prefix_cache=False)
    alone = [wish(n=1, seed=3 + i, **settings) for i in range(4)]
    return [tokens_of(llm.generate(PROMPT, one))[0] for one in alone]


@pytest.mark.parametrize("chunk", [512, 5, 13])
@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_requests_of_their_own(case: str, chunk: int) -> None:
    """Also where a piece leaves the last token of the prompt to a decode step."""
    llm = LLM(model_of(case), cache_memory=MEMORY, prefill_chunk=chunk, prefix_cache=False)
    outputs = llm.generate([PROMPT, PROMPT[:3]], [wish(), wish(n=1)])
    assert tokens_of(outputs)[:4] == one_by_one(case)
    assert [output.index for output in outputs] == [0, 1, 2, 3, 0]
    assert llm.statistics.prefilled_tokens <= len(PROMPT) + 3
    assert_idle(llm)


@pytest.mark.parametrize("settings", [{"max_batch": 2}, {"cache_memory": 12_000}])
def test_where_not_all_have_room_at_once(settings: dict) -> None:
    llm = LLM(model_of("llama"), **{"cache_memory": MEMORY, "prefill_chunk": 6, **settings})
    outputs = llm.generate([PROMPT, prompts()[1]], [wish(max_tokens=40)] * 2)
    assert tokens_of(outputs)[:4] == one_by_one("llama", max_tokens=40)
    assert_idle(llm)


def test_frames_are_shared() -> None:
    llm = LLM(model_of("llama"), cache_memory=MEMORY, prefix_cache=False)
    prompt = PROMPT * 10
    held = []
    for n in (1, 4):
        stream = llm.stream(prompt, wish(n=n))
        next(stream)
        held.append(llm.statistics.held_frames)
        stream.close()
    assert held[1] < 2 * held[0]
    assert_idle(llm)


def test_streams_and_aborts_are_of_all_of_them() -> None:
    llm = LLM(model_of("bamba"), cache_memory=MEMORY)
    due = one_by_one("bamba")
    found: dict[int, tuple[int, ...]] = {}
    for output in llm.stream(PROMPT, wish()):
        assert found.get(output.index, ()) + output.new_token_ids == output.token_ids
        found[output.index] = output.token_ids
    assert [found[index] for index in range(4)] == due
    stream = llm.stream(PROMPT, wish(max_tokens=30))
    next(stream)
    assert llm.abort(stream.request_id).index == 0
    assert {output.finish_reason for output in list(stream)[-4:]} == {"abort"}
    llm.add_request(PROMPT, wish(max_tokens=30), request_id="a")
    llm.step()
    llm.abort("a")
    assert [output.index for output in llm.step() if output.finished] == [1, 2, 3]
    assert_idle(llm)


def test_log_probabilities_of_the_prompt_are_told_by_all() -> None:
    llm = LLM(model_of("llama"), cache_memory=MEMORY, prefill_chunk=4)
    outputs = llm.generate(PROMPT, wish(prompt_logprobs=0, logprobs=0))
    assert len({output.prompt_logprobs for output in outputs}) == 1
    assert len(outputs[3].prompt_logprobs) == len(PROMPT)
    assert [len(output.logprobs) for output in outputs] == [9] * 4
