"""Texts are encoded once, with one token at their beginning."""

from __future__ import annotations

from cacheshrink_hybrid.calibration.text import token_sequences
from cacheshrink_hybrid.text_ids import text_ids
from tests.engine.tokenizers import byte_level_tokenizer


def test_a_text_that_begins_with_bos_gets_no_second_one() -> None:
    tokenizer = byte_level_tokenizer()
    once = text_ids(tokenizer, "Once")
    assert once == tokenizer("Once").input_ids
    assert text_ids(tokenizer, "<s>Once") == once
    assert text_ids(tokenizer, "<s><s>Once") == tokenizer("<s><s>Once").input_ids


def test_nor_does_one_that_is_calibrated_on() -> None:
    tokenizer = byte_level_tokenizer()
    (ids,) = token_sequences(tokenizer, ["<s>Once upon a time, often"], max_length=99)
    assert ids[0].tolist().count(tokenizer.bos_token_id) == 1
