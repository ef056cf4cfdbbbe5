"""Which requests can be answered at all: by their lengths, and by the memory that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..engine import AsyncLLM, SamplingParams
from ..engine.prompts import Ids
from ..errors import PromptLengthError
from .schema import SamplingFields

Asked = tuple[Ids, SamplingParams]
"""One prompt, and what is wished of it."""


def admitted(
    engine: AsyncLLM, sent: SamplingFields, prompts: Sequence[Ids], params: SamplingParams
) -> list[Asked]:
    """What the engine is asked for. Answers to requests that name no `max_tokens` end where the
    context does.

    Raises:
        PromptLengthError: a prompt and its `max_tokens` are longer than `max_model_len`.
        ConfigError, CacheFullError: they need more than may be open at once.
    """
    limit = engine.llm.max_model_len
    named = _named_limit(sent)
    asked = [(prompt, _within(limit, len(prompt), named, params)) for prompt in prompts]
    need_bytes = sum(engine.need_bytes(*one) for one in asked)
    engine.check_alone(len(asked) * params.n, need_bytes)
    return asked


def _named_limit(sent: SamplingFields) -> tuple[str, int] | None:
    """The field that says how long answers may be, and what it says."""
    for name in ("max_completion_tokens", "max_tokens"):
        if (value := getattr(sent, name, None)) is not None:
            return name, value
    return None


def _within(
    limit: int | None, num_prompt: int, named: tuple[str, int] | None, params: SamplingParams
) -> SamplingParams:
    if limit is None:
        return params
    room = limit - num_prompt
    if room < 1:
        raise PromptLengthError(
            f"the prompt has {num_prompt} tokens, and the context {limit} (max_model_len), prompt "
            "and answer together; send a shorter one"
        )
    if named is not None and named[1] > room:
        raise PromptLengthError(
            f"{named[0]}={named[1]} and a prompt of {num_prompt} tokens are more than the "
            f"{limit} tokens of the context (max_model_len); ask for {room} at most, or send a "
            "shorter prompt"
        )
    if params.max_tokens is None or params.max_tokens <= room:
        return params
    return replace(params, max_tokens=room, min_tokens=min(params.min_tokens, room))
