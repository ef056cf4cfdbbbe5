"""Prompts in every container that libraries hand out, and everything else refused."""

from __future__ import annotations

from collections import UserList

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from cacheshrink_hybrid.engine.prompts import PromptEncoder, single_prompt, split_prompts
from cacheshrink_hybrid.errors import ConfigError
from tests.engine.tokenizers import TOKENIZERS, byte_fallback_tokenizer, byte_level_tokenizer
from tests.texts import word_tokenizer

IDS = (5, 6, 7)
PADDED = {"input_ids": [[5, 6, 7], [0, 8, 9]], "attention_mask": [[1, 1, 1], [0, 1, 1]]}


@pytest.mark.parametrize(
    "given",
    [
        [5, 6, 7],
        (5, 6, 7),
        range(5, 8),
        UserList([5, 6, 7]),
        np.array([5, 6, 7]),
        np.array([[5, 6, 7]], dtype=np.uint16),
        list(np.array([5, 6, 7])),
        torch.tensor([5, 6, 7]),
        torch.tensor([[5, 6, 7]], dtype=torch.int32),
        list(torch.tensor([5, 6, 7])),
        [[5, 6, 7]],
        [np.array([5, 6, 7])],
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]},
        {"input_ids": torch.tensor([[0, 5, 6, 7]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])},
        BatchEncoding(
            {"input_ids": np.array([5, 6, 7, 0]), "attention_mask": [True] * 3 + [False]}
        ),
        BatchEncoding({"input_ids": [5, 6, 7], "token_type_ids": [0, 0, 0]}),
    ],
)
def test_one_prompt(given) -> None:
    assert split_prompts(given) == [IDS]
    assert single_prompt(given) == IDS
    assert all(type(token) is int for token in single_prompt(given))


@pytest.mark.parametrize(
    ("given", "due"),
    [
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        (["a", [5], np.array([6]), {"input_ids": [7]}], ["a", (5,), (6,), (7,)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
        (np.array([[5, 6], [7, 8]]), [(5, 6), (7, 8)]),
        (torch.tensor([[5, 6], [7, 8]]), [(5, 6), (7, 8)]),
        (PADDED, [(5, 6, 7), (8, 9)]),
        ({name: torch.tensor(rows) for name, rows in PADDED.items()}, [(5, 6, 7), (8, 9)]),
        ({name: np.array(rows) for name, rows in PADDED.items()}, [(5, 6, 7), (8, 9)]),
        ({"input_ids": PADDED["input_ids"]}, [(5, 6, 7), (0, 8, 9)]),
        ([], []),
        ([[5], []], [(5,), ()]),
        ({"input_ids": []}, [()]),
    ],
)
def test_several_prompts(given, due: list) -> None:
    assert split_prompts(given) == due
    if len(due) > 1:
        with pytest.raises(ConfigError, match=f"{len(due)} were given"):
            single_prompt(given)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", [None, "pt", "np"])
def test_what_a_tokenizer_returns(side: str, kind: str | None) -> None:
    tokenizer = word_tokenizer()
    texts = ["one two three", "four"]
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors=kind)
    assert split_prompts(batch) == [tuple(tokenizer(text).input_ids) for text in texts]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "int 5 cannot be served"),
        (None, "NoneType"),
        (b"abc", "bytes"),
        ({1, 2}, "set"),
        ((n for n in (1, 2)), "generator"),
        ([1.5, 2.0], "float 1.5"),
        ([1, "a"], "int 1 cannot"),
        ([True, False], "bool True"),
        ([None], "NoneType"),
        (np.array([1.0]), "ndarray .1,. of float64"),
        (np.array(["a"]), "ndarray"),
        (torch.tensor([1.0]), "torch.float32"),
        (torch.tensor([True]), "torch.bool"),
        (torch.zeros(1, 1, 1, dtype=torch.long), "cannot be served"),
        (torch.tensor(3), "cannot be served"),
        ({"prompt": "a"}, "dict of .'prompt'."),
        ({"input_ids": [1], "pixel_values": [2]}, "pixel_values"),
        ({"input_ids": "text"}, "text as input_ids"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "one entry for each token"),
        ({"input_ids": [1, 2], "attention_mask": [0.0, -9.0]}, "of 0 and 1"),
        ([{"role": "user", "content": "hi"}], r"LLM.chat\(\)"),
        ([[{"role": "user", "content": "hi"}]], r"apply_chat_template"),
        ({"role": "user", "content": "hi"}, r"LLM.chat\(\)"),
        ([["a", "b"], "c"], "one prompt is taken here, and 2"),
    ],
)
def test_what_is_no_prompt(given, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_prompts(given)


@pytest.mark.parametrize("tokenizer_of", [byte_fallback_tokenizer, byte_level_tokenizer])
def test_a_text_with_its_first_token_gets_no_second_one(tokenizer_of) -> None:
    tokenizer = tokenizer_of()
    usual = PromptEncoder(tokenizer, None).text("Once")
    assert usual[0] == tokenizer.bos_token_id
    with_bos = PromptEncoder(tokenizer, None).text("<s>Once")
    assert with_bos[:2] != (1, 1)
    assert with_bos == tuple(tokenizer("<s>Once", add_special_tokens=False).input_ids)
    assert PromptEncoder(tokenizer, None).text("<s><s>Once")[:3] == (1, 1, 1)  # both were meant
    assert PromptEncoder(tokenizer, None).text("Once <s>")[0] == 1


def test_tokenizers_that_add_nothing_keep_what_is_written() -> None:
    tokenizer = word_tokenizer()
    assert PromptEncoder(tokenizer, None).text("<bos> one") == (1, 3)
    assert PromptEncoder(tokenizer, None).text("<bos><bos> one") == (1, 1, 3)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_are_as_the_tokenizer_encodes_them(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    assert PromptEncoder(tokenizer, None).text("one two") == tuple(tokenizer("one two").input_ids)


def test_texts_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"character 2 of the text, .*is half of a pair"):
        PromptEncoder(byte_level_tokenizer(), None).text("on\ud800e")


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}girl:{% endif %}"
)
CHAT = [{"role": "user", "content": "Once upon a time"}]


def test_a_conversation(monkeypatch) -> None:
    tokenizer = byte_level_tokenizer()
    encoder = PromptEncoder(tokenizer, None)
    with pytest.raises(ConfigError, match="no chat template"):
        encoder.chat(CHAT)
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    text = "<s>user: Once upon a time\n"
    for settings, due in (({}, text + "girl:"), ({"add_generation_prompt": False}, text)):
        ids = encoder.chat(CHAT, **settings)
        assert ids == tuple(tokenizer(due, add_special_tokens=False).input_ids)
        assert ids == encoder.text(due)
    for wrong in ("hello", [], ["hello"], [{"content": "x"}]):
        with pytest.raises(ConfigError, match="no conversation"):
            encoder.chat(wrong)


def test_texts_that_would_not_fit_in_the_longest_tokens(monkeypatch) -> None:
    tokenizer = byte_level_tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    longest = max(map(len, tokenizer.get_vocab()))
    encoder = PromptEncoder(tokenizer, 10)
    assert encoder.text("a" * 10 * longest)
    with monkeypatch.context() as patched:
        patched.setattr("cacheshrink_hybrid.engine.prompts.text_ids", None)  # it is not read
        for refused in (
            lambda: encoder.text("a" * (10 * longest + 1)),
            lambda: encoder.chat([{"role": "user", "content": "a" * 10 * longest}]),
        ):
            with pytest.raises(ConfigError, match=rf"for 10 tokens, of at most {longest} char"):
                refused()
