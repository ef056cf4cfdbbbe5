"""The bytes of tokens, one after the other, are the text's."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.engine.token_bytes import TokenBytes
from tests.engine.tokenizers import TEXTS, TOKENIZERS
from tests.texts import WORDS


@pytest.mark.parametrize("number", range(len(TEXTS)))
@pytest.mark.parametrize("name", ["byte fallback", "byte level"])
def test_bytes_of_a_text(name: str, number: int) -> None:
    tokenizer = TOKENIZERS[name]()
    known = TokenBytes(tokenizer)
    tokens = tokenizer(TEXTS[number], add_special_tokens=False).input_ids
    written = b"".join(map(known, tokens)).decode()
    assert written.lstrip(" ") == TEXTS[number].lstrip(" ")


def test_parts_of_characters() -> None:
    tokenizer = TOKENIZERS["byte level"]()
    known = TokenBytes(tokenizer)
    parts = tokenizer("世", add_special_tokens=False).input_ids
    assert len(parts) > 1
    assert [known.text(token) for token in parts] == ["\N{REPLACEMENT CHARACTER}"] * len(parts)
    assert b"".join(map(known, parts)) == "世".encode()
    names = [known.name(token) for token in parts]
    assert "".join(name.removeprefix("bytes:") for name in names) == r"\xe4\xb8\x96"
    assert known.name(tokenizer("a", add_special_tokens=False).input_ids[-1]) == "a"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_and_unknown_tokens(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    known = TokenBytes(tokenizer)
    assert known.text(tokenizer.bos_token_id) == tokenizer.bos_token
    assert known(10**6) == b""


def test_characters_and_words() -> None:
    tokenizer = TOKENIZERS["characters"]()
    tokens = tokenizer("a b", add_special_tokens=False).input_ids
    assert list(map(TokenBytes(tokenizer).text, tokens)) == ["a", " ", "b"]
    tokenizer = TOKENIZERS["words"]()
    tokens = tokenizer(" ".join(WORDS), add_special_tokens=False).input_ids
    assert list(map(TokenBytes(tokenizer).text, tokens)) == WORDS
