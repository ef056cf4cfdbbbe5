"""A small tokenizer and a small text, made on the spot."""

from __future__ import annotations

import copy
from functools import cache

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEXT = "one two three four five six seven eight nine ten the cat sat on a mat and ran home"
WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `WORDS`."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{w: 3 + i for i, w in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CHAT = [
    {"role": "user", "content": "one two"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "four"},
]


@cache
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """`word_tokenizer` with a chat template."""
    tokenizer = copy.deepcopy(word_tokenizer())
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
