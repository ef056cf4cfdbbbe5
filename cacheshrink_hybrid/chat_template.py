"""Conversations as the text that a chat model reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from .errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Mapping[str, Any]]
"""Messages with `role` and `content`, in order."""


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ConfigError` for a tokenizer that knows no form of conversations."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            f"this tokenizer ({type(tokenizer).__name__}) has no chat template, and conversations "
            "take one; set tokenizer.chat_template, or give text instead"
        )


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, all of them where it has several; empty for none."""
    template: Any = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):  # by name
        return "\n".join(map(str, template.values()))
    return template or ""


def template_reads(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """Whether a name, of a variable, a field or a role, stands in the tokenizer's chat template."""
    return re.search(rf"\b{re.escape(name)}\b", template_text(tokenizer)) is not None


def check_conversation(messages: Any) -> None:
    """Raise `ConfigError` for what is no list of messages."""
    readable = isinstance(messages, Sequence) and len(messages) > 0
    if not readable or not all(isinstance(one, Mapping) and "role" in one for one in messages):
        raise ConfigError(
            f"{type(messages).__name__} {messages!r:.60} is no conversation; give a list of "
            "messages such as {'role': 'user', 'content': '...'}"
        )


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Conversation, **settings: Any) -> str:
    """A conversation in the tokenizer's chat template, all special tokens written out.

    Args:
        settings: passed to the template, such as `add_generation_prompt` and `tools`.

    Raises:
        ConfigError: no template, something else than messages, or messages that the template
            refuses.
    """
    check_conversation(messages)
    check_chat_template(tokenizer)
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **settings))
    except (TemplateError, TypeError) as error:  # such as text and nothing, added up
        raise ConfigError(
            f"the tokenizer's chat template refuses a conversation of the roles "
            f"{', '.join(str(one['role']) for one in messages)}: {error}; give messages as the "
            "template has them"
        ) from error


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Conversation, **settings: Any
) -> list[int]:
    """Token ids of `chat_text`."""
    return chat_text_ids(tokenizer, chat_text(tokenizer, messages, **settings))


def chat_text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of what a chat template wrote, nothing added to it."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
