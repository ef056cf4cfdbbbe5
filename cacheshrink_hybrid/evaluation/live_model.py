"""A model as lm-eval asks it, every answer read from the cache of generation.

lm-eval's own model for transformers scores a continuation in one pass over context and
continuation and throws the cache away, so that what a cache costs between two passes never shows.
Here a context is read chunk by chunk into a live cache, once for all continuations that follow it,
and each continuation is read on top.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..calibration.amount import positions_of
from ..chat_template import chat_text, check_chat_template
from ..errors import CacheShrinkWarning, ConfigError
from ..text_ids import text_ids
from .defaults import DEFAULT_CHUNK
from .live_context import LiveContext

MAX_NEW_TOKENS = 256
"""Tokens of an answer where a task does not say."""
_COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_GREEDY = {"do_sample": False, "temperature": 0, "num_beams": 1}
"""Settings of generation that may be given, with this value."""


class Request(Protocol):
    """What lm-eval asks: an `Instance`, of which `args` matter here."""

    args: tuple[Any, ...]


class LiveModel:
    """The methods of an `LM` of lm-eval, over a live cache. Sequences are read one by one.

    Args:
        model: converted or not.
        tokenizer: its own.
        chunk_length: tokens per forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chunk_length: int = DEFAULT_CHUNK,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.chunk_length = chunk_length

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Of (context, continuation) each: the continuation's log-probability, and whether greedy
        decoding says it."""
        by_context: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for number, request in enumerate(requests):
            context, continuation = self._pair(*request.args)
            by_context.setdefault(tuple(context), []).append((number, continuation))
        found: dict[int, tuple[float, bool]] = {}
        for ids, continuations in tqdm(by_context.items(), desc="log-likelihood", leave=False):
            live = LiveContext(self.model, ids, self.chunk_length)
            for number, continuation in continuations:
                values, likeliest = live.log_probabilities(continuation)
                found[number] = float(values.double().sum()), bool(likeliest.all())
        return [found[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Log-probability of each whole text (text,). Beyond the model's positions it is read in
        windows, each as long as can be; every token is predicted once."""
        found = []
        for request in tqdm(requests, desc="rolling log-likelihood", leave=False):
            first, ids = self._from_the_first(request.args[0])
            width = self._positions or len(ids)
            total = 0.0
            for start in range(0, len(ids), width):
                end = min(start + width, len(ids))
                before = [first, *ids][max(0, end - width) : start + 1]
                live = LiveContext(self.model, before, self.chunk_length)
                values, _ = live.log_probabilities(ids[start:end])
                total += float(values.double().sum())
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Greedy continuation of each (context, settings), up to one of `until`, an end token or
        as many tokens as allowed.

        Raises:
            ConfigError: settings that are not those of greedy decoding.
        """
        found = []
        for request in tqdm(requests, desc="generation", leave=False):
            text, settings = request.args
            stops, count = _how_far(settings)
            ids = self._within(text_ids(self.tokenizer, text) or [self._first], count)

            def done(new: list[int], stops: list[str] = stops) -> bool:
                said = self.tokenizer.decode(new, skip_special_tokens=True)
                return any(stop in said for stop in stops)

            new = LiveContext(self.model, ids, self.chunk_length).greedy(count, done)
            said = self.tokenizer.decode(new, skip_special_tokens=True)
            found.append(said[: min((said.find(s) for s in stops if s in said), default=None)])
        return found

    # What lm-eval asks of chats

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return chat_text(
            self.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if not chat_template:
            return None
        check_chat_template(self.tokenizer)
        name = chat_template if isinstance(chat_template, str) else None
        return self.tokenizer.get_chat_template(name)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    # Tokens

    @property
    def _positions(self) -> int | None:
        return positions_of(self.model.config)

    @property
    def _first(self) -> int:
        """What stands before a text of which the first token is predicted as well."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ConfigError(
            "this tokenizer has neither a beginning-of-sequence nor an end-of-sequence token, and "
            "a text's first token is predicted from one; set tokenizer.bos_token"
        )

    def _from_the_first(self, text: str) -> tuple[int, list[int]]:
        """The token before a text, and those of the text."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return self._first, ids[ids[:1] == [self._first] :]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of its continuation, of which spaces between belong to the
        latter."""
        if not context:
            first, ids = self._from_the_first(continuation)
            return [first], ids
        whole = text_ids(self.tokenizer, context + continuation)
        start = min(len(text_ids(self.tokenizer, context.rstrip())), len(whole) - 1)
        return self._within(whole[:start], len(whole) - start), whole[start:]

    def _within(self, context: list[int], more: int) -> list[int]:
        """The end of a context behind which so many tokens have positions.

        Raises:
            ConfigError: they have none, whatever the context.
        """
        limit = self._positions
        if limit is None or len(context) + more - 1 <= limit:
            return context
        if more > limit:
            raise ConfigError(
                f"{more} tokens are to follow a context, and the model has {limit} positions; "
                "choose tasks with shorter answers, or a smaller max_gen_toks"
            )
        warnings.warn(
            f"a context of {len(context)} tokens is cut on the left: {more} more are to follow, "
            f"and the model has {limit} positions",
            CacheShrinkWarning,
            stacklevel=4,
        )
        return context[-(limit - more + 1) :]


def _how_far(settings: Mapping[str, Any]) -> tuple[list[str], int]:
    """Stop strings and number of tokens among a task's settings of generation.

    Raises:
        ConfigError: any other setting than those of greedy decoding.
    """
    rest = dict(settings)
    until = rest.pop("until", None) or []
    counts = [rest.pop(name) for name in _COUNTS if rest.get(name) is not None]
    wrong = {k: v for k, v in rest.items() if v is not None and _GREEDY.get(k, ...) != v}
    if wrong and not (set(wrong) == {"temperature"} and rest.get("do_sample") is False):
        raise ConfigError(
            f"generation with {', '.join(f'{k}={v!r}' for k, v in wrong.items())} is not offered, "
            "only greedy decoding (do_sample=False) up to `until` and max_gen_toks; change the "
            "task's generation_kwargs"
        )
    return [until] if isinstance(until, str) else list(until), int((*counts, MAX_NEW_TOKENS)[0])


def check_lm_eval() -> None:
    """Raise `ConfigError` where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-eval is not installed; pip install 'cacheshrink_hybrid[lm-eval]'")


def lm_eval_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chunk_length: int = DEFAULT_CHUNK,
) -> Any:
    """A `LiveModel` that `lm_eval.simple_evaluate(model=...)` and `lm_eval.evaluate` take.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    check_lm_eval()
    from lm_eval.api.model import LM

    class LiveLM(LiveModel, LM):
        """An `LM` by what it is, a `LiveModel` by what it does."""

    return LiveLM(model, tokenizer, chunk_length)
