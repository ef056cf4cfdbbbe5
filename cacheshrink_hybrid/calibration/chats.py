"""Conversations to calibrate on: a list, or a JSON file of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..chat_template import Conversation, check_conversation
from ..errors import CalibrationError, ConfigError
from .json_files import values_of

MESSAGES = "messages"
"""Key of an object in a file whose value is a conversation."""


def load_chats(chats: Sequence[Conversation] | str | Path) -> list[Conversation]:
    """Conversations as they are given, or of a file: a JSON list of them, or with the ending .jsonl
    one in each line. In a file a conversation is a list of messages, or an object with `messages`.

    Raises:
        CalibrationError: no such file, none of JSON, or something else than conversations.
    """
    name = "calibration_chats"
    found: Any = chats
    if isinstance(chats, (str, Path)):
        name = str(chats)
        found = values_of(Path(chats), "conversations")
        if isinstance(found, list):
            found = [_bare(one) for one in found]
    if isinstance(found, Mapping) or not isinstance(found, Sequence):
        raise CalibrationError(
            f"{name} is a {type(found).__name__}; give a list of conversations, each a list of "
            "messages such as {'role': 'user', 'content': '...'}, or a JSON file of them"
        )
    if not found:
        raise CalibrationError(f"{name} holds no conversation; give at least one")
    if isinstance(found[0], Mapping):
        raise CalibrationError(
            f"{name} holds messages, so it is one conversation; give a list of conversations, each "
            "a list of messages"
        )
    for number, one in enumerate(found, start=1):
        try:
            check_conversation(one)
        except ConfigError as error:
            raise CalibrationError(f"number {number} of {name}: {error}") from error
    return list(found)


def _bare(conversation: Any) -> Any:
    """The messages of an object that holds them."""
    if isinstance(conversation, Mapping) and MESSAGES in conversation:
        return conversation[MESSAGES]
    return conversation
