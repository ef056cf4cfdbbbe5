"""What is found in a text, by models that remember well, badly, and not at all."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.demo.corpus import held_out_text
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.evaluation.retrieval import (
    ExactReads,
    exact_reads,
    measure_retrieval,
)
from cacheshrink_hybrid.evaluation.retrieval_questions import Question, retrieval_texts
from tests.families.tiny_configs import tiny_model
from tests.models import pair, random_ids

QUESTION = Question(
    prompt_ids=tuple(range(3, 43)), answer_ids=(7, 8), code="78", depth=0.2, distance=30
)
"""Its fact begins with token 10 of 40."""


class Digits:
    """A tokenizer that reads token 7 as "7"."""

    def decode(self, ids) -> str:
        return "".join(map(str, ids))


def answers_of(model, texts, **how):
    return measure_retrieval(model, Digits(), texts, **how)


def continuing(model, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


@pytest.mark.parametrize("case", ["llama", "granitemoehybrid", "jamba"])
def test_answers_are_what_the_model_goes_on_with(case: str) -> None:
    model = tiny_model(case)
    prompt = random_ids(1, 30)[0].tolist()
    said = continuing(model, prompt, 3)
    right = Question(
        prompt_ids=tuple(prompt),
        answer_ids=tuple(said[:2]),
        code="".join(map(str, said)),
        depth=0.5,
        distance=12,
    )
    wrong = replace(right, prompt_ids=(*prompt[:20], *range(5, 14)), code="1")
    (first, second) = answers_of(model, [(right, wrong)], chunk_length=7)[0]
    assert first.said == "".join(map(str, said))
    assert (first.exact, first.likeliest) == (True, 1.0)
    assert not second.exact
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *said[:1]]])).logits[0, -2:]
    due = torch.log_softmax(logits, -1).gather(1, torch.tensor(said[:2])[:, None]).mean()
    assert first.log_probability == pytest.approx(float(due), abs=1e-4)


def test_one_question_alone_is_answered_the_same() -> None:
    model = pair("llama", ratio=2.0, cache_bits="auto").converted
    other = replace(QUESTION, prompt_ids=(*QUESTION.prompt_ids[:25], 9, 9, 9))
    ((first, _),) = answers_of(model, [(QUESTION, other)], chunk_length=8)
    ((alone,),) = answers_of(model, [(QUESTION,)], chunk_length=3)
    assert first.said == alone.said
    assert first.log_probability == pytest.approx(alone.log_probability, abs=1e-4)


def test_beyond_the_positions() -> None:
    with pytest.raises(ConfigError, match="of 42 tokens are beyond the 41 positions of this model"):
        model = copy.deepcopy(tiny_model("llama"))
        model.config.max_position_embeddings = 41
        answers_of(model, [(QUESTION,)])


@pytest.mark.parametrize(
    ("settings", "words", "covered"),
    [
        (None, "all keys and values", True),
        ({}, "none", False),
        ({"exact_sinks": 4, "exact_window": 8}, "the first 4 and the last 8 tokens", False),
        ({"exact_sinks": 10}, "the first 10 and the last 0 tokens", False),
        ({"exact_sinks": 11}, "the first 11 and the last 0 tokens", True),
        ({"exact_window": 29}, "the first 0 and the last 29 tokens", False),
        ({"exact_window": 30}, "the first 0 and the last 30 tokens", True),
    ],
    ids=str,
)
def test_which_tokens_are_read_exactly(settings: dict | None, words: str, covered: bool) -> None:
    if settings is None:
        model = tiny_model("llama")
    else:
        model = pair("llama", ratio=4.0, cache_bits="auto", **settings).converted
    reads = exact_reads(model)
    assert reads.words() == words
    assert reads.cover(QUESTION) is covered
    assert isinstance(reads, ExactReads)


def test_states_that_are_not_read_exactly_are_named() -> None:
    model = pair("qwen3_next", state_dtype="int8").converted
    assert exact_reads(model).words().endswith("; recurrent states as conversion codes them")
    assert exact_reads(tiny_model("qwen3_next")).words() == "all keys and values"


@pytest.mark.slow
def test_the_shipped_model_finds_more_than_by_chance() -> None:
    """It has learned to say again what it read, which a random model cannot."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    texts = retrieval_texts(tokenizer, "keys", 512, held_out_text(), num_texts=2)
    found = measure_retrieval(model, tokenizer, texts, chunk_length=256)
    likeliest = [one.likeliest for text in found for one in text]
    assert sum(likeliest) / len(likeliest) > 0.3
