"""Texts of a form, a regular expression, JSON of a schema or a grammar, kept to token by token.

The automaton is llguidance's. It says which tokens may come next: those that some text of the form
goes on with.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError
from .finite_json import can_end
from .sampling_params import FORMS, SamplingParams
from .token_bytes import TokenBytes

WHITESPACE = r"[ \n]{0,20}"
"""Between the parts of JSON: as much as people write, and no more, since a model may go on so."""
JSON_OPTIONS: Any = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
"""How JSON is written, as llguidance reads it in `x-guidance` of a schema."""
TERSE_JSON: Any = {"whitespace_flexible": True, "whitespace_pattern": " ?"}
"""The same of JSON that programs alone read, so that a model spends no tokens on how it looks."""
COMPACT_JSON: Any = {"whitespace_flexible": False}
"""The same without any white space."""
PACKAGE = "llguidance"
LEXER_FUEL = 200_000
"""What reading a form may cost, as llguidance counts, a fifth of what it grants by itself: some
tenths of a second at the most, in which nobody else's tokens come. Twenty thousand words to choose
from take it; schemas of hundreds of fields take less."""
COSTLY = ("lexer error", "too big", "row has")
"""In llguidance's words where a form takes more than is granted."""
KEPT_FORMS = 16
"""Forms of which the first step is kept, for other prompts that ask for the same."""


class GrammarVocabulary:
    """A model's tokens as grammars see them, read when the first grammar comes.

    Args:
        tokenizer: of the model.
        size: token ids that the model has logits for.
        ends: tokens after which it says nothing more.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, ends: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        self.size = size
        self.ends = sorted(ends)

    def __getstate__(self) -> dict[str, Any]:
        """A copy reads it anew."""
        return {name: getattr(self, name) for name in ("tokenizer", "size", "ends")}

    @cached_property
    def _tokens(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(
            TokenizerWrapper(_Described(self)), n_vocab=self.size, eos_token=self.ends
        )

    def matcher(self, grammar: str) -> Any:
        """An automaton at the beginning of a text.

        Raises:
            ConfigError: the grammar cannot be read, takes too much to read, or no text is of its
                form.
        """
        begun = self._begun(grammar)
        if not begun.is_error():
            return begun.deep_copy()
        if "NoExtension" in begun.get_error():
            raise _unwritable(begun, [])
        raise ConfigError(
            f"the form that was asked for cannot be had: {_why(begun)}; change the regex, the JSON "
            "schema or the grammar"
        )

    @cached_property
    def _begun(self) -> Callable[[str], Any]:
        """From a grammar to its automaton, which has found what a text may begin with: that costs
        more than all that follows. One may have an error."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(initial_lexer_fuel=LEXER_FUEL)

        @lru_cache(KEPT_FORMS)
        def begun(grammar: str) -> Any:
            made = LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
            if not made.is_error():
                made.compute_bitmask()
            return made

        return begun


class _Described:
    """What llguidance asks of a tokenizer. Bytes that have to come are written by the longest
    tokens: tokenizers themselves may put a space before them."""

    bos_token_id = None

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        known = TokenBytes(vocabulary.tokenizer)
        self.eos_token_id = vocabulary.ends[0]
        self.special_token_ids = sorted({*vocabulary.tokenizer.all_special_ids, *vocabulary.ends})
        self.tokens = [known(token) for token in range(vocabulary.size)]
        special = frozenset(self.special_token_ids)
        self._by_bytes = {
            written: token
            for token, written in enumerate(self.tokens)
            if written and token not in special
        }
        self._longest = max(map(len, self._by_bytes), default=1)

    def __call__(self, written: bytes) -> list[int]:
        """Tokens of these bytes, up to where none goes on."""
        found: list[int] = []
        at = 0
        while at < len(written):
            sizes = range(min(self._longest, len(written) - at), 0, -1)
            size = next((n for n in sizes if written[at : at + n] in self._by_bytes), 0)
            if not size:
                break
            found.append(self._by_bytes[written[at : at + size]])
            at += size
        return found


class GrammarRule:
    """Only what goes on with a text of the grammar's form, and an end token only behind one.

    Args:
        vocabulary: of the model.
        grammar: as llguidance writes it.
        num_prompt: tokens of the prompt.

    Raises:
        ConfigError: as of `GrammarVocabulary.matcher`.
    """

    def __init__(self, vocabulary: GrammarVocabulary, grammar: str, num_prompt: int) -> None:
        self._vocabulary, self._grammar, self._num_prompt = vocabulary, grammar, num_prompt
        self._matcher: Any = vocabulary.matcher(grammar)
        self._num_read = num_prompt

    def __getstate__(self) -> dict[str, Any]:
        """A copy reads the output anew."""
        return vars(self) | {"_matcher": None, "_num_read": self._num_prompt}

    def apply(self, logits: Tensor, tokens: Sequence[int]) -> None:
        matcher = self._read(tokens)
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(mask, bitorder="little", count=len(logits)).astype(bool)
        if not matcher.is_accepting():
            allowed[list(self._vocabulary.ends)] = False
        if matcher.is_error() or not allowed.any():
            raise _unwritable(matcher, tokens[self._num_prompt :])
        logits.masked_fill_(torch.from_numpy(~allowed).to(logits.device), -torch.inf)

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Whether nothing can come behind the output."""
        return bool(self._read(tokens).is_stopped())

    def _read(self, tokens: Sequence[int]) -> Any:
        """The automaton behind the output so far."""
        if self._matcher is None:
            self._matcher = self._vocabulary.matcher(self._grammar)
        new = list(tokens[self._num_read :])
        self._num_read = len(tokens)
        if new and not self._matcher.consume_tokens(new):
            raise _unwritable(self._matcher, tokens[self._num_prompt :])
        return self._matcher


def _unwritable(matcher: Any, output: Sequence[int]) -> ConfigError:
    """What is said where a text of the form does not go on: no token writes what is due, as where
    it has characters that the tokenizer lacks, or to find out takes too much."""
    after = f"after {len(output)} tokens, "
    if any(words in _why(matcher) for words in COSTLY):
        return ConfigError(
            f"{after}the form that was asked for takes more to go on with than is granted "
            f"({_why(matcher)}); ask for a simpler one, with fewer repetitions and fields"
        )
    return ConfigError(
        f"{after}no token of this tokenizer goes on with a text of the form that was asked for "
        f"({_why(matcher)}); allow other characters in the regex, the JSON schema or the grammar"
    )


def _why(matcher: Any) -> str:
    return _line(matcher.get_error().partition("<state>")[0])


def grammar_of(params: SamplingParams) -> str | None:
    """The form that a request asks for, as llguidance writes it; None for any text.

    Raises:
        ConfigError: the package is not installed, or cannot read what is asked for.
    """
    if all(getattr(params, name) is None for name in FORMS):
        return None
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(
            f"{', '.join(FORMS)} need {PACKAGE}, which is not installed; "
            "pip install 'cacheshrink_hybrid[serve]'"
        )
    from llguidance import LLMatcher

    schema: Any = params.json_schema
    check_end(schema)
    try:
        if params.grammar is not None:
            return str(LLMatcher.grammar_from_lark(params.grammar))
        if params.regex is not None:
            return str(LLMatcher.grammar_from_regex(params.regex))
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"the form that was asked for cannot be read: {_line(str(error))}; change it, as by "
            "fewer levels of a schema"
        ) from error


def check_end(schema: Any) -> None:
    """Refuse a JSON schema, as from JSON or its text, whose texts have no end.

    Raises:
        ConfigError: for such a schema.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return  # whoever reads it says so
    try:
        ends = can_end(schema)
    except RecursionError:
        return
    if not ends:
        raise ConfigError(
            "no JSON of this schema comes to an end: it must hold another one of the same; leave "
            "out 'required' or 'minItems' where it refers to itself, or allow null there"
        )


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
