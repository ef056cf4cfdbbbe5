"""The engine's words for what a client sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..engine import SamplingParams
from ..errors import ConfigError
from .answer_formats import AnswerParts
from .call_grammar import json_terminal, regex_terminal
from .schema import ChatRequest, CompletionRequest, SamplingFields
from .tool_choice import forced_schema, free_grammar

COMPLETION_TOKENS = 16
"""Most tokens of a completion that names no number, as in OpenAI's API."""
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
        **shown,
        **_chat_form(sent, parts),
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
        # An engine makes at least one token, which an echo alone leaves out.
        max_tokens=1 if is_echo_alone(sent) else limit,
        logprobs=sent.logprobs,
        **told,
    )


def is_echo_alone(sent: CompletionRequest) -> bool:
    """Whether the prompt, with its log-probabilities, is all that is asked for."""
    return bool(sent.echo) and sent.max_tokens == 0


def _params(sent: SamplingFields, **own: Any) -> SamplingParams:
    same = {name: value for name in SAME if (value := getattr(sent, name)) is not None}
    if sent.stream_options is not None and not sent.stream:
        raise ConfigError("stream_options goes with stream=true; send both, or none")
    if sent.stream and sent.prompt_logprobs is not None:
        raise ConfigError("prompt_logprobs are not told in streams; leave out stream, or them")
    top_k = sent.top_k
    return SamplingParams(
        **{"temperature": 1.0} | same | _form(sent) | own,
        top_k=None if top_k in (0, -1) else top_k,
        logit_bias=_bias(sent.logit_bias or {}),
        include_stop=bool(sent.include_stop_str_in_output),
    )


def _form(sent: SamplingFields) -> dict[str, Any]:
    """Which texts an answer may be, as fields of `SamplingParams`."""
    wanted, other = sent.response_format, sent.structured_outputs
    if wanted is not None and (wanted.type == "json_schema") != (wanted.json_schema is not None):
        raise ConfigError("response_format has json_schema with type json_schema, and only then")
    schema: dict[str, Any] | None = None
    if wanted is not None and wanted.type != "text":
        schema = {"type": "object"} if wanted.json_schema is None else wanted.json_schema.schema_
    if other is None:
        return {"json_schema": schema}
    if schema is not None:
        raise ConfigError("response_format and structured_outputs exclude each other; send one")
    regex = other.regex if other.choice is None else _one_of(other.choice)
    return {"json_schema": other.json_, "regex": regex}


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
        return dict.fromkeys(form) | {"json_schema": schema}
    terminal = None
    if (regex := form.get("regex")) is not None:
        terminal = regex_terminal(regex)
    elif (other := form["json_schema"]) is not None:
        terminal = json_terminal(other)
    grammar = free_grammar(sent, parts, terminal)
    return form if grammar is None else dict.fromkeys(form) | {"grammar": grammar}


def _bias(sent: dict[str, float]) -> dict[int, float]:
    wrong = [token for token in sent if not TOKEN_ID.fullmatch(token)]
    if wrong:
        raise ConfigError(
            f"logit_bias has keys such as {wrong[0]!r:.80}; token ids are whole numbers"
        )
    return {int(token): value for token, value in sent.items()}
