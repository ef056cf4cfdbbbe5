"""What wishes make of logits is what transformers' processors of the same names do."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from cacheshrink_hybrid.engine import SamplingParams
from cacheshrink_hybrid.engine.logit_rules import ruled_scores, rules_of
from cacheshrink_hybrid.engine.sampling import token_scores
from cacheshrink_hybrid.errors import ConfigError

V = 12
PROMPT = [3, 5, 5, 7]
ENDS = (2, 9)
RUNS = ((4,), (5, 6), (7, 5, 6), (1, 1, 1, 1, 1, 1, 1, 1, 1))


def logits_at(step: int) -> Tensor:
    return 2 * torch.randn(V, generator=torch.Generator().manual_seed(step))


def ruled(params: SamplingParams, outputs: list[int], bad_words=(), dtype=torch.float32):
    """Logits and the best token at each step of an output, under one request's rules."""
    rules = rules_of(params, num_prompt=len(PROMPT), ends=ENDS, bad_words=bad_words)
    found = []
    for step in range(len(outputs) + 1):
        scores = token_scores(logits_at(step).to(dtype)[None])[0]
        found.append(ruled_scores(scores, rules, PROMPT + outputs[:step]))
        assert torch.equal(scores.logits, logits_at(step).to(dtype))  # others read them as well
    return found


CASES: dict[str, tuple[dict, Callable[[], Callable]]] = {
    "repetition": (
        {"repetition_penalty": 1.7},
        lambda: RepetitionPenaltyLogitsProcessor(1.7),
    ),
    "encouraged": (
        {"repetition_penalty": 0.6},
        lambda: RepetitionPenaltyLogitsProcessor(0.6),
    ),
    "bias": (
        {"logit_bias": {3: -100.0, 7: 2.5}},
        lambda: SequenceBiasLogitsProcessor({(3,): -100.0, (7,): 2.5}),
    ),
    "least": (
        {"min_tokens": 3},
        lambda: MinNewTokensLengthLogitsProcessor(len(PROMPT), 3, list(ENDS), device="cpu"),
    ),
    "allowed": (
        {"allowed_token_ids": [8, 1, 8]},
        lambda: SuppressTokensLogitsProcessor(sorted(set(range(V)) - {1, 8}), device="cpu"),
    ),
    "bad words": ({}, lambda: NoBadWordsLogitsProcessor([list(run) for run in RUNS])),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("outputs", [[5, 6, 7, 5, 3, 3], [1, 1, 1, 1, 1, 1, 1, 1]])
def test_each_rule(case: str, outputs: list[int]) -> None:
    settings, reference = CASES[case]
    bad_words = RUNS if case == "bad words" else ()
    found = ruled(SamplingParams(**settings), outputs, bad_words)
    for step, scores in enumerate(found):
        ids = torch.tensor([PROMPT + outputs[:step]])
        due = reference()(ids, logits_at(step)[None].clone())[0]
        torch.testing.assert_close(scores.logits, due)
        assert (scores.best, scores.highest) == (int(due.argmax()), float(due.max()))


def test_presence_and_frequency() -> None:
    outputs = [5, 6, 5, 5, 0]
    found = ruled(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), outputs)
    for step, scores in enumerate(found):
        due = logits_at(step)
        for token in range(V):  # the formula of OpenAI's API, of the output alone
            count = outputs[:step].count(token)
            due[token] -= 0.25 * count + 0.5 * (count > 0)
        torch.testing.assert_close(scores.logits, due)


def test_rules_together_in_half_precision() -> None:
    params = SamplingParams(
        repetition_penalty=1.3, frequency_penalty=0.5, logit_bias={5: 3.0}, min_tokens=9
    )
    outputs = [5, 5]
    last = ruled(params, outputs, [(4,)], torch.bfloat16)[-1]
    due = logits_at(2).to(torch.bfloat16).float()
    due[[4, *ENDS]] = -math.inf
    due[5] += 3
    for token in {*PROMPT, *outputs}:
        due[token] = due[token] / 1.3 if due[token] > 0 else due[token] * 1.3
    due[5] -= 0.5 * 2
    torch.testing.assert_close(last.logits, due)


def test_nothing_asked_nothing_done() -> None:
    assert rules_of(SamplingParams(), num_prompt=1, ends=ENDS, bad_words=()) == []
    scores = token_scores(logits_at(0)[None])[0]
    assert ruled_scores(scores, [], PROMPT) is scores


def test_no_token_left() -> None:
    with pytest.raises(ConfigError, match="forbid every next token"):
        ruled(SamplingParams(allowed_token_ids=[2, 9], min_tokens=1), [])
