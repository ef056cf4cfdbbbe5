"""Texts as the runs of tokens that write them."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase


def word_runs(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> list[tuple[int, ...]]:
    """Token ids of each text, at the beginning of a line and behind a space.

    The latter counts where the space is part of the first token; otherwise the former is found
    behind the space as well.
    """
    runs: list[tuple[int, ...]] = []
    for word in words:
        plain, spaced = (
            tuple(tokenizer(text, add_special_tokens=False).input_ids)
            for text in (word, f" {word.lstrip()}")
        )
        runs.append(plain)
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            runs.append(spaced)
    return [run for run in runs if run]
