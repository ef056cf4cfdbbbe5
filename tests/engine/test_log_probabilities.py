"""Log-probabilities are those of the model's own logits."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.engine.log_probabilities import log_probabilities
from tests.engine.idle import assert_idle
from tests.engine.test_llm import MEMORY, model_of, prompts


def test_values_ranks_and_tops() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, 0.0]])
    first, second = log_probabilities(logits, [2, 1], 2)
    due = logits.double().log_softmax(-1)
    assert (first.token_id, first.rank, second.rank) == (2, 2, 1)
    assert first.value == pytest.approx(float(due[0, 2]), rel=1e-6)
    assert [token for token, _ in first.top] == [1, 2]
    assert [value for _, value in first.top] == pytest.approx(due[0, [1, 2]].tolist())
    assert log_probabilities(logits, [0, 0], 0)[0].top == ()
    assert len(log_probabilities(logits, [0, 0], 99)[0].top) == 3


def of_the_whole(model, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of what follows each token, (T, V), in one pass."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("case", ["llama", "bamba"])
def test_of_prompt_and_output(case: str) -> None:
    model = model_of(case)
    llm = LLM(model, cache_memory=MEMORY, prefill_chunk=6)
    wish = SamplingParams(
        max_tokens=5, logprobs=3, prompt_logprobs=1, logit_bias={7: 100.0}, temperature=1.0
    )
    llm.generate(prompts(), SamplingParams(max_tokens=1))  # which the prompts could be taken from
    for prompt, output in zip(prompts(), llm.generate(prompts(), wish), strict=True):
        assert output.token_ids == (7,) * 5  # the bias counts, and is not part of what is told
        whole = of_the_whole(model, [*prompt, *output.token_ids])
        assert output.prompt_logprobs[0] is None
        told = [*output.prompt_logprobs[1:], *output.logprobs]
        assert [one.token_id for one in told] == [*prompt[1:], *output.token_ids]
        for one, row in zip(told, whole, strict=False):
            assert one.value == pytest.approx(float(row[one.token_id]), abs=1e-4)
            best = row.topk(len(one.top))
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert {len(one.top) for one in output.logprobs} == {3}
    assert llm.statistics.prefixes.misses["every token asked for"] == len(prompts())
    assert_idle(llm)


def test_of_preempted_requests() -> None:
    """A request that starts over tells of each token once."""
    wish = SamplingParams(max_tokens=40, logprobs=0, prompt_logprobs=0)
    tight = LLM(model_of("llama"), cache_memory=12_000, prefill_chunk=5)
    outputs = tight.generate(prompts(), wish)
    assert tight.statistics.preemptions > 0
    ample = LLM(model_of("llama"), cache_memory=MEMORY).generate(prompts(), wish)
    for one, other in zip(outputs, ample, strict=True):
        for name in ("logprobs", "prompt_logprobs"):
            told = [[x and x.value for x in getattr(output, name)] for output in (one, other)]
            assert told[0][0] == pytest.approx(told[1][0], abs=1e-4)
            assert told[0][1:] == pytest.approx(told[1][1:], abs=1e-4)
        assert len(one.prompt_logprobs) == len(one.prompt_ids)


def test_outputs_without_them_have_none() -> None:
    output = LLM(model_of("llama"), cache_memory=MEMORY).generate([5, 6])[0]
    assert (output.logprobs, output.prompt_logprobs) == (None, None)


def test_streams_tell_of_what_has_come() -> None:
    llm = LLM(model_of("llama"), cache_memory=MEMORY)
    parts = list(llm.stream(prompts()[0], SamplingParams(max_tokens=4, logprobs=1)))
    assert [len(part.logprobs) for part in parts] == [1, 2, 3, 4]
