"""Conversations are rendered by the tokenizer's template, and by nothing else."""

from __future__ import annotations

import copy

import pytest

from cacheshrink_hybrid.chat_template import chat_ids, chat_text
from cacheshrink_hybrid.errors import ConfigError
from tests.engine.tokenizers import byte_level_tokenizer
from tests.texts import CHAT, CHAT_TEMPLATE, chat_tokenizer, word_tokenizer


def test_the_template_writes_everything() -> None:
    tokenizer = chat_tokenizer()
    text = chat_text(tokenizer, CHAT, add_generation_prompt=True)
    assert text == "<bos>user: one two\nassistant: three\nuser: four\nassistant:"
    assert (
        chat_ids(tokenizer, CHAT)
        == tokenizer(chat_text(tokenizer, CHAT), add_special_tokens=False).input_ids
    )


def test_nothing_is_put_before_what_the_template_writes() -> None:
    tokenizer = copy.deepcopy(byte_level_tokenizer())
    tokenizer.chat_template = CHAT_TEMPLATE
    bos = tokenizer.bos_token_id
    assert tokenizer("one").input_ids[0] == bos
    assert chat_ids(tokenizer, CHAT).count(bos) == 1


def test_a_tokenizer_without_a_template() -> None:
    with pytest.raises(ConfigError, match=r"has no chat template, .*; set tokenizer.chat_template"):
        chat_text(word_tokenizer(), CHAT)


@pytest.mark.parametrize("wrong", ["hello", [], ["hello"], [{"content": "x"}], None, {"role": "a"}])
def test_what_is_no_conversation(wrong: object) -> None:
    with pytest.raises(ConfigError, match="is no conversation; give a list of messages"):
        chat_text(chat_tokenizer(), wrong)


def test_what_the_template_refuses() -> None:
    tokenizer = copy.deepcopy(chat_tokenizer())
    tokenizer.chat_template = "{{ raise_exception('no system here') }}" + CHAT_TEMPLATE
    with pytest.raises(ConfigError, match="roles user, assistant, user: no system here; give"):
        chat_text(tokenizer, CHAT)


def test_what_the_template_cannot_add_up() -> None:
    tokenizer = copy.deepcopy(chat_tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ 'x' + m['content'] }}{% endfor %}"
    with pytest.raises(ConfigError, match="template refuses a conversation of the roles assistant"):
        chat_text(tokenizer, [{"role": "assistant", "content": None}])
