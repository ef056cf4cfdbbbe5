"""The engine's words for what a client sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..engine import SamplingParams
from ..engine.grammar import COMPACT_JSON, JSON_OPTIONS, TERSE_JSON
from ..errors import ConfigError
from .answer_formats import AnswerParts
from .call_grammar import json_grammar, json_terminal, regex_terminal
from .schema import ChatRequest, CompletionRequest, SamplingFields
from .tool_choice import Schema, callable_tools, forced_schema, free_grammar

COMPLETION_TOKENS = 16
"""Most tokens of a completion that names no number, as in OpenAI's API."""
ANY_OBJECT: Schema = {"type": "object"}
TOKEN_ID = re.compile(r"-?[0-9]{1,18}")
SAME = (
    "n",
    "temperature",
    "top_p",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "allowed_token_ids",
    "bad_words",
    "skip_special_tokens",
    "prompt_logprobs",
)
"""Fields that the engine calls by the same names."""


def chat_params(sent: ChatRequest, parts: AnswerParts) -> SamplingParams:
    """Wishes of a chat.

    Args:
        parts: of the model's answers. Where they are told apart by special tokens, the text must
            have these.

    Raises:
        ConfigError: values that make no sense.
    """
    if sent.top_logprobs is not None and not sent.logprobs:
        raise ConfigError("top_logprobs goes with logprobs=true; send both, or none")
    limit = sent.max_completion_tokens
    if limit is not None and limit < 1:
        raise ConfigError(f"max_completion_tokens={limit} must be at least 1; leave it out for any")
    shown: dict[str, Any] = {"skip_special_tokens": False} if parts.has_special else {}
    return _params(
        sent,
        _chat_form(sent, parts),
        **shown,
        max_tokens=sent.max_tokens if limit is None else limit,
        logprobs=(sent.top_logprobs or 0) if sent.logprobs else None,
    )


def completion_params(sent: CompletionRequest) -> SamplingParams:
    """Wishes of a completion.

    Raises:
        ConfigError: values that make no sense.
    """
    if sent.best_of not in (None, sent.n or 1):
        raise ConfigError(
            f"best_of={sent.best_of} is not n={sent.n or 1}, and every answer is sent; leave "
            "best_of out"
        )
    told: dict[str, Any] = {}
    if sent.echo and sent.logprobs is not None:
        if sent.prompt_logprobs not in (None, sent.logprobs):
            raise ConfigError(
                f"prompt_logprobs={sent.prompt_logprobs} is not logprobs={sent.logprobs}, which an "
                "echo tells of the prompt as well; leave one of them out"
            )
        told["prompt_logprobs"] = sent.logprobs
    limit = COMPLETION_TOKENS if sent.max_tokens is None else sent.max_tokens
    return _params(
        sent,
        _form(sent),
        # An engine makes at least one token, which an echo alone leaves out.
        max_tokens=1 if is_echo_alone(sent) else limit,
        logprobs=sent.logprobs,
        **told,
    )


def is_echo_alone(sent: CompletionRequest) -> bool:
    """Whether the prompt, with its log-probabilities, is all that is asked for."""
    return bool(sent.echo) and sent.max_tokens == 0


def _params(sent: SamplingFields, form: dict[str, Any], **own: Any) -> SamplingParams:
    same = {name: value for name in SAME if (value := getattr(sent, name)) is not None}
    if sent.stream_options is not None and not sent.stream:
        raise ConfigError("stream_options goes with stream=true; send both, or none")
    if sent.stream and sent.prompt_logprobs is not None:
        raise ConfigError("prompt_logprobs are not told in streams; leave out stream, or them")
    top_k = sent.top_k
    return SamplingParams(
        **{"temperature": 1.0} | same | form | own,
        top_k=None if top_k in (0, -1) else top_k,
        logit_bias=_bias(sent.logit_bias or {}),
        include_stop=bool(sent.include_stop_str_in_output),
    )


def _form(sent: SamplingFields) -> dict[str, Any]:
    """Which texts an answer may be, as the field of `SamplingParams` that says so; none for any."""
    if (found := _json(sent)) is not None:
        schema, options = found
        if options is JSON_OPTIONS:
            return {"json_schema": schema}
        return {"grammar": json_grammar(schema, options)}
    other = sent.structured_outputs
    if other is None:
        return {}
    if other.grammar is not None:
        return {"grammar": other.grammar}
    return {"regex": other.regex if other.choice is None else _one_of(other.choice)}


def _json(sent: SamplingFields) -> tuple[Schema, Schema] | None:
    """The schema of an answer that is to be JSON, and how it is written."""
    wanted, other = sent.response_format, sent.structured_outputs
    if wanted is not None and (wanted.type == "json_schema") != (wanted.json_schema is not None):
        raise ConfigError("response_format has json_schema with type json_schema, and only then")
    if wanted is not None and wanted.type != "text":
        if other is not None:
            raise ConfigError("response_format and structured_outputs exclude each other; send one")
        schema = ANY_OBJECT if wanted.json_schema is None else wanted.json_schema.schema_
        return schema, JSON_OPTIONS
    if other is None or not (other.json_object or other.json_ is not None):
        return None
    schema = ANY_OBJECT if other.json_ is None else other.json_
    return schema, COMPACT_JSON if other.disable_any_whitespace else JSON_OPTIONS


def _one_of(texts: Sequence[str]) -> str:
    """A regular expression of these texts, in which no character stands for another."""
    return "|".join(
        "".join(x if x.isalnum() or ord(x) > 127 else f"\\x{ord(x):02x}" for x in text)
        for text in texts
    )


def _chat_form(sent: ChatRequest, parts: AnswerParts) -> dict[str, Any]:
    """The same of a chat, where calls of tools have a part in it."""
    form, schema = _form(sent), forced_schema(sent)
    if schema is not None:
        return {"grammar": json_grammar(schema, TERSE_JSON)}
    if not callable_tools(sent):
        return form
    grammar = free_grammar(sent, parts, _terminal(sent, form))
    return form if grammar is None else {"grammar": grammar}


def _terminal(sent: ChatRequest, form: dict[str, Any]) -> str | None:
    """An answer's form as a terminal of a grammar; None for any text."""
    if (found := _json(sent)) is not None:
        return json_terminal(*found)
    if "grammar" in form:
        raise ConfigError(
            "structured_outputs has a grammar, and tools have one of their own; send tool_choice "
            "none, or another form"
        )
    return regex_terminal(form["regex"]) if "regex" in form else None


def _bias(sent: dict[str, float]) -> dict[int, float]:
    wrong = [token for token in sent if not TOKEN_ID.fullmatch(token)]
    if wrong:
        raise ConfigError(
            f"logit_bias has keys such as {wrong[0]!r:.80}; token ids are whole numbers"
        )
    return {int(token): value for token, value in sent.items()}
