"""Text as the tokens that a model reads."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text of any length, with the special tokens that the tokenizer adds. A text
    that begins with the beginning-of-sequence token, as chat templates write it, gets no second."""
    quiet = {"verbose": False} if isinstance(tokenizer, PreTrainedTokenizerBase) else {}
    ids = list(tokenizer(text, **quiet).input_ids)
    bos, bos_id = getattr(tokenizer, "bos_token", None), getattr(tokenizer, "bos_token_id", None)
    if bos and text.startswith(bos) and ids[:2] == [bos_id, bos_id]:
        plain = tokenizer(text, add_special_tokens=False, **quiet).input_ids
        if plain[:2] != [bos_id, bos_id]:
            return ids[1:]
    return ids
