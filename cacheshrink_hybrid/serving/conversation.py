"""Messages of clients as chat templates read them.

What a template would pass over in silence is refused, so that the model has seen all that an
answer is expected to know.
"""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..chat_template import template_reads
from ..errors import ConfigError
from .schema import Message

Plain = dict[str, Any]
CALLS = "tool_calls"
DEVELOPER = "developer"
"""Who gives instructions, in OpenAI's newer words."""
ROLES = ("system", DEVELOPER, "user", "assistant", "tool")
FIELDS = (
    "role",
    "content",
    "name",
    CALLS,
    "tool_call_id",
    "reasoning_content",
    "reasoning",
    "refusal",
)
"""What clients send back as they got it, and OpenAI's own; templates that do not read them do well
without."""


def conversation(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> list[Plain]:
    """Messages with content as text and arguments of tool calls as objects; None is the same as
    leaving a field out. A developer is the system where the template knows of none.

    Raises:
        ConfigError: arguments that are no JSON, a message without content, and roles, fields or
            calls of tools that the template does not write.
    """
    return [_plain(message, number, tokenizer) for number, message in enumerate(messages)]


def _plain(message: Message, number: int, tokenizer: PreTrainedTokenizerBase) -> Plain:
    sent = message.model_dump(exclude_unset=True)
    plain = {name: value for name, value in sent.items() if value is not None}
    if plain.get("annotations") == []:
        del plain["annotations"]
    _check_read(plain, number, tokenizer)
    role, content = message.role, message.content
    if role == DEVELOPER and not template_reads(tokenizer, DEVELOPER):
        plain["role"] = "system"
    if content is None and role != "assistant":
        raise ConfigError(f"messages[{number}] of role {role!r:.80} has no content; send its text")
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    plain["content"] = content or ""
    calls = plain.get(CALLS)
    if calls and not template_reads(tokenizer, CALLS):
        raise ConfigError(
            f"messages[{number}] has {CALLS}, which the model's chat template does not write; say "
            "them as content, or start the server with a --chat-template that writes them"
        )
    for call in calls if isinstance(calls, list) else []:
        _read_arguments(call)
    return plain


def _check_read(plain: Plain, number: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse what the template would pass over."""
    role = plain["role"]
    if role not in ROLES and not template_reads(tokenizer, role):
        raise ConfigError(
            f"messages[{number}].role is {role!r:.80}, which the model's chat template does not "
            f"know; send one of {', '.join(ROLES)}"
        )
    unread = [x for x in plain if x not in FIELDS and not template_reads(tokenizer, x)]
    if unread:
        raise ConfigError(
            f"messages[{number}] has {', '.join(unread):.200}, which the model's chat template "
            "does not read; leave it out"
        )


def _read_arguments(call: Any) -> None:
    """Arguments of a call as an object, in its place."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            # Some say so where there are none.
            function["arguments"] = json.loads(function["arguments"].strip() or "{}")
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"arguments of a tool call are no JSON ({error}); send them as they came"
            ) from error
