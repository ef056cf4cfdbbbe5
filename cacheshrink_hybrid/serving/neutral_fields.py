"""Fields of OpenAI and vLLM that nothing here reads, and values at which they change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Neutral = Mapping[str, tuple[Any, ...]]
"""Values by the names of fields. None is neutral everywhere."""

_BOTH: dict[str, tuple[Any, ...]] = {
    "cache_salt": (),
    "include_reasoning": (True,),
    "kv_transfer_params": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
COMPLETION_NEUTRAL: Neutral = _BOTH | {"add_special_tokens": (True,), "suffix": ("",)}
CHAT_NEUTRAL: Neutral = _BOTH | {
    "add_generation_prompt": (True,),
    # Of a conversation all special tokens are the template's.
    "add_special_tokens": (False,),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "chat_template": (),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
}

INSTEAD = {
    "functions": "send tools",
    "function_call": "send tool_choice",
    "suffix": "models that fill in take it within the prompt",
    "reasoning_effort": "send it in chat_template_kwargs, where the chat template reads it",
    "guided_json": "send structured_outputs",
    "guided_regex": "send structured_outputs",
    "guided_choice": "send structured_outputs",
    "chat_template": "start the server with a --chat-template",
    "documents": "send them in chat_template_kwargs, where the chat template reads them",
}
"""What to do instead of sending fields that are not taken."""


def without_neutral(given: Any, neutral: Neutral) -> Any:
    """A body without the fields that change nothing."""
    if not isinstance(given, dict):
        return given
    return {
        name: value
        for name, value in given.items()
        if not any(_is_same(value, one) for one in neutral.get(name, ()))
    }


def words_of_unread(name: str) -> str:
    """What is wrong with a field that is not taken."""
    if name in INSTEAD:
        return f"is not taken here; {INSTEAD[name]}"
    if name not in COMPLETION_NEUTRAL and name not in CHAT_NEUTRAL:
        return "is not known"
    return "is taken only with the value that changes nothing; leave it out"


def _is_same(value: Any, other: Any) -> bool:
    """Whether they are equal and of one kind; True is no number."""
    return type(value) is type(other) and value == other
