"""Texts as runs of tokens, wherever they stand in a line."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.engine.word_tokens import word_runs
from tests.engine.test_llm import MEMORY, model_of
from tests.engine.tokenizers import TOKENIZERS
from tests.texts import TEXTS, WORDS, word_tokenizer


@pytest.mark.parametrize("name", TOKENIZERS)
def test_runs_decode_to_their_words(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    words = ["six", "cat"] if name == "words" else ["Lily", "in a"]
    runs = word_runs(tokenizer, words)
    texts = {tokenizer.decode(list(run)).strip() for run in runs}
    assert texts == set(words)
    assert not any(token in tokenizer.all_special_ids for run in runs for token in run)


def test_a_space_that_is_part_of_the_first_token() -> None:
    tokenizer = TOKENIZERS["byte level"]()
    assert len(word_runs(tokenizer, ["a"])) == 2  # as "a", and as "Ġa"
    assert len(word_runs(tokenizer, ["b"])) == 1  # behind a space it is the same token


def test_bad_words_are_not_generated() -> None:
    llm = LLM(model_of("llama"), word_tokenizer(), cache_memory=MEMORY)
    known = range(3, 3 + len(WORDS))
    wish = {"max_tokens": 30, "temperature": 1.0, "seed": 0, "allowed_token_ids": known}
    words = llm.generate(TEXTS[0], SamplingParams(**wish))[0].text.split()
    single, pair = words[0], " ".join(words[2:4])
    assert single not in pair.split()
    kept = llm.generate(TEXTS[0], SamplingParams(**wish, bad_words=[single, pair]))[0].text
    assert single not in kept.split()
    assert f" {pair} " not in f" {kept} "
