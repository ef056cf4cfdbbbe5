"""What may be given as a prompt: text, token ids in any container, and what tokenizers return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..chat_template import chat_text, chat_text_ids
from ..errors import ConfigError, PromptLengthError
from ..text_ids import text_ids

ALLOWED = (
    "a prompt is text, token ids (a list, tuple, array or tensor of integers, one-dimensional) or "
    "what a tokenizer returned; several prompts are a list of those, or two-dimensional"
)
BESIDE_IDS = {"attention_mask", "token_type_ids", "special_tokens_mask", "offset_mapping", "length"}
"""What tokenizers return beside token ids; a text model reads only the mask of them."""

Ids = tuple[int, ...]


def split_prompts(given: Any) -> list[str | Ids]:
    """The prompts, one or several, without the padding that attention masks tell of.

    Raises:
        ConfigError: something that is no prompt.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping):
        return list(_rows_of_encoding(given))
    if isinstance(given, (Tensor, np.ndarray)):
        return list(_rows_of_array(given))
    if isinstance(given, Sequence) and not isinstance(given, (bytes, bytearray, memoryview)):
        if given and all(map(_is_token, given)):
            return [tuple(map(int, given))]
        return [single_prompt(one) for one in given]
    raise _no_prompt(given)


def single_prompt(given: Any) -> str | Ids:
    """The only prompt of what was given.

    Raises:
        ConfigError: something that is no prompt, or several.
    """
    if isinstance(given, (list, tuple)) and not given:
        return ()
    found = split_prompts(given)
    if len(found) != 1:
        raise ConfigError(f"one prompt is taken here, and {len(found)} were given; {ALLOWED}")
    return found[0]


class PromptEncoder:
    """Token ids of texts and conversations.

    Args:
        tokenizer: of the model.
        max_length: positions that the model has; None for any number. A text that would not fit
            even in the longest tokens is refused before it is read, which takes long.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def text(self, text: str) -> Ids:
        """Token ids of a text, with the special tokens that the tokenizer adds. A text that begins
        with the beginning-of-sequence token, as chat templates write it, gets no second one.

        Raises:
            ConfigError: a text that cannot be written in UTF-8.
            PromptLengthError: one that is too long.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"character {error.start} of the text, {text[error.start]!r}, is half of a pair "
                "and no character; repair the text where it was decoded"
            ) from error
        self._check_length(text)
        return tuple(text_ids(self.tokenizer, text))

    def chat(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> Ids:
        """Token ids of a conversation in the tokenizer's chat template, up to where the answer
        begins.

        Raises:
            ConfigError: there is no such template, or something else than messages.
            PromptLengthError: they are too long.
        """
        text = chat_text(self.tokenizer, messages, **{"add_generation_prompt": True, **template})
        self._check_length(text)
        return tuple(chat_text_ids(self.tokenizer, text))

    def _check_length(self, text: str) -> None:
        if self.max_length is None:
            return
        most = self.max_length * self._longest_token
        if len(text) > most:
            raise PromptLengthError(
                f"the prompt has {len(text)} characters, and the model has positions for "
                f"{self.max_length} tokens, of at most {self._longest_token} characters; shorten it"
            )

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()))


def _is_token(value: object) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 0 and _is_integer_array(value)
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_integer_array(array: Tensor | np.ndarray) -> bool:
    if isinstance(array, np.ndarray):
        return array.dtype.kind in "iu"
    return not (array.is_floating_point() or array.is_complex() or str(array.dtype) == "torch.bool")


def _rows_of_array(array: Tensor | np.ndarray) -> list[Ids]:
    if array.ndim not in (1, 2) or not _is_integer_array(array):
        raise _no_prompt(f"{type(array).__name__} {tuple(array.shape)} of {array.dtype}")
    rows = array.tolist()
    return [tuple(row) for row in (rows if array.ndim == 2 else [rows])]


def _rows_of_encoding(given: Mapping[str, Any]) -> list[Ids]:
    if "role" in given:
        raise ConfigError(
            "a message of a chat is no prompt; give the conversation to LLM.chat(), or the text of "
            "tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)"
        )
    unknown = sorted(map(str, set(given) - BESIDE_IDS - {"input_ids"}))
    if "input_ids" not in given or unknown:
        raise _no_prompt(f"a {type(given).__name__} of {sorted(map(str, given))}")
    ids = given["input_ids"]
    found = split_prompts(ids) if len(ids) else [()]
    if any(isinstance(row, str) for row in found):
        raise _no_prompt("text as input_ids")
    rows = [tuple(row) for row in found if not isinstance(row, str)]
    mask = given.get("attention_mask")
    return rows if mask is None else _without_padding(rows, mask)


def _without_padding(rows: Sequence[Ids], mask: Any) -> list[Ids]:
    values = mask.tolist() if isinstance(mask, (Tensor, np.ndarray)) else list(mask)
    nested = [list(row) for row in values] if _is_nested(values) else [values]
    if [len(row) for row in nested] != [len(row) for row in rows]:
        raise ConfigError(
            f"attention_mask has rows of {[len(row) for row in nested][:4]} entries, and input_ids "
            f"of {[len(row) for row in rows][:4]}; give one entry for each token"
        )
    if any(value not in (0, 1) for row in nested for value in row):
        raise ConfigError("attention_mask must consist of 0 and 1")
    return [
        tuple(token for token, seen in zip(row, seen_of, strict=True) if seen)
        for row, seen_of in zip(rows, nested, strict=True)
    ]


def _is_nested(values: list[Any]) -> bool:
    return bool(values) and isinstance(values[0], (Sequence, Tensor, np.ndarray))


def _no_prompt(given: Any) -> ConfigError:
    shown = given if isinstance(given, str) else f"{type(given).__name__} {given!r:.60}"
    return ConfigError(f"{shown} cannot be served; {ALLOWED}")
