"""Answers as OpenAI's objects."""

from __future__ import annotations

from itertools import accumulate

import pytest

from cacheshrink_hybrid.engine import LogProbability
from cacheshrink_hybrid.engine.token_bytes import TokenBytes
from cacheshrink_hybrid.serving.answers import CompletionWriter
from tests.engine.tokenizers import byte_level_tokenizer


@pytest.mark.parametrize("text", ["a b", "日本 😀 cafe", "é😀x", "x́y"])
@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_offsets_are_places_in_the_text(text: str, piece: int) -> None:
    """Whatever a token has of a character, it stands where that does, also in chunks."""
    tokenizer = byte_level_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    known = TokenBytes(tokenizer)
    writer = CompletionWriter("m", known, [])
    offsets: list[int] = []
    for begin in range(0, len(ids), piece):
        told = [
            LogProbability(token_id=x, value=-1.0, rank=1, top=())
            for x in ids[begin : begin + piece]
        ]
        offsets += writer._logprobs(0, None, told)["text_offset"]
    begins = accumulate((len(known(x)) for x in ids[:-1]), initial=0)
    letters = [place for place, letter in enumerate(text) for _ in letter.encode()]
    assert offsets == [letters[begin] for begin in begins]
