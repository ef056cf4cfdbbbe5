"""Texts fit their length, hold what is asked for once, and are the same for a seed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cacheshrink_hybrid.chat_template import chat_text
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.evaluation.defaults import RETRIEVAL_TASKS
from cacheshrink_hybrid.evaluation.retrieval_questions import TASKS, Question, retrieval_texts
from tests.engine.tokenizers import byte_fallback_tokenizer, byte_level_tokenizer
from tests.texts import CHAT_TEMPLATE, WORDS

DOCUMENTS = [
    "It was a bright cold morning when nobody walked along the river. Every window stayed dark! "
    "Some people slept; others waited for bread, coal and news from far away places.",
    "Before noon, nineteen wagons with heavy barrels rolled across wooden bridges. Rain fell. "
    "Children followed them under broad yellow umbrellas, shouting names of foreign cities.",
    " ".join(
        a + b for a in ("sun", "moon", "rain", "wind") for b in ("beam", "ward", "less", "ing")
    ),
]


@cache
def chatting() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def plain() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


KINDS = {
    "chat": chatting,
    "plain": plain,
    "bytes": byte_level_tokenizer,
    "pieces": byte_fallback_tokenizer,
}


def asked(kind: str, task: str, length: int = 1600, **how) -> list[Sequence[Question]]:
    settings = {"num_texts": 2, "num_questions": 2, **how}
    return retrieval_texts(KINDS[kind](), task, length, DOCUMENTS, **settings)


def test_the_tasks_have_their_names() -> None:
    assert tuple(TASKS) == RETRIEVAL_TASKS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_what_is_asked_for_is_there_once(task: str, kind: str) -> None:
    tokenizer = KINDS[kind]()
    for questions in asked(kind, task):
        for question in questions:
            prompt = tokenizer.decode(question.prompt_ids)
            assert prompt.count(question.code) == 1
            code = tokenizer.decode(question.answer_ids).strip()
            assert code.endswith(question.code)
            assert tokenizer.decode(question.prompt_ids + question.answer_ids).endswith(
                f" {question.code}"
            )
            place = tokenizer.decode(question.prompt_ids[-question.distance - 1 :])
            assert "The code of" in place[:16]
            key = prompt.rsplit("What is the code of ", 1)[1].split("?")[0]
            assert f"The code of {key}" in place[: len(key) + 16]


@pytest.mark.parametrize("kind", ["chat", "bytes"])
@pytest.mark.parametrize("task", TASKS)
def test_texts_are_the_longest_that_fit(task: str, kind: str) -> None:
    longest = max(map(len, DOCUMENTS))
    for length in (1300, 1600):
        for questions in asked(kind, task, length):
            sizes = [len(one.prompt_ids) + len(one.answer_ids) for one in questions]
            assert length - longest < max(sizes) <= length


def test_a_chat_is_in_its_template_and_other_prompts_have_the_leading_token() -> None:
    for kind, begin, end in (
        ("chat", "user: Remember the codes", "assistant:The code of "),
        ("plain", "Remember the codes", "?\nThe code of "),
    ):
        tokenizer = KINDS[kind]()
        question = asked(kind, "needle")[0][0]
        prompt = tokenizer.decode(question.prompt_ids, skip_special_tokens=True)
        assert prompt.startswith(begin)
        assert end in prompt[-60:]
        assert question.prompt_ids.count(tokenizer.bos_token_id) == 1
        assert question.prompt_ids[0] == tokenizer.bos_token_id


def test_models_that_think_answer_at_once() -> None:
    tokenizer = copy.deepcopy(chatting())
    tokenizer.chat_template += "{% if enable_thinking is not false %}<think>{% endif %}"
    ((question,),) = retrieval_texts(
        tokenizer, "needle", 900, DOCUMENTS, num_texts=1, num_questions=1
    )
    assert "<think>" not in tokenizer.decode(question.prompt_ids)
    assert "<think>" in chat_text(tokenizer, [{"role": "user", "content": "a"}])


def test_the_same_for_a_seed() -> None:
    assert asked("plain", "keys") == asked("plain", "keys")
    assert asked("plain", "keys") != asked("plain", "keys", seed=1)
    assert len({one.code for text in asked("plain", "needle") for one in text}) == 4


def test_texts_of_one_document_are_not_the_same() -> None:
    document = " ".join(f"Sentence of {a + b} things." for a in "bcdfg" for b in WORDS)
    texts = retrieval_texts(plain(), "needle", 900, [document], num_texts=3, num_questions=1)
    shown = {plain().decode(text[0].prompt_ids[50:90]) for text in texts}
    assert len(shown) == 3


def test_questions_ask_all_over_the_text() -> None:
    for questions in asked("plain", "needle", num_questions=4):
        depths = sorted(question.depth for question in questions)
        assert all(later - one < 0.6 for one, later in pairwise(depths))
        distances = [q.distance for q in sorted(questions, key=lambda one: one.depth)]
        assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize(
    ("task", "length", "message"),
    [
        ("words", 1600, "task='words' is unknown; choose from needle, keys"),
        ("keys", 100, "length=100 is too short for questions .* take [0-9]+ tokens; give a"),
        ("keys", 9000, "words for a list of [0-9]+ tokens, and length=9000 takes more; give a"),
    ],
)
def test_refused(task: str, length: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked("plain", task, length)


def test_too_few_words() -> None:
    with pytest.raises(ConfigError, match=r"the text has 2 different .* and 3 are to have codes"):
        retrieval_texts(plain(), "needle", 900, ["seven words"], num_questions=2)
