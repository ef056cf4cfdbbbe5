"""Messages reach the chat template whole, or are refused."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.serving.conversation import conversation
from cacheshrink_hybrid.serving.schema import Message
from tests.engine.shipped import shipped_model

CALL = {"id": "1", "type": "function", "function": {"name": "go", "arguments": '{"to": "Rome"}'}}


def tokenizer_with(template: str) -> PreTrainedTokenizerBase:
    made = copy.deepcopy(shipped_model()[1])
    made.chat_template = template
    return made


def plain(template: str, **message) -> dict:
    (found,) = conversation([Message(**message)], tokenizer_with(template))
    return found


def test_what_is_none_is_left_out() -> None:
    found = plain("tool_calls", role="assistant", content=None, tool_calls=None, refusal=None)
    assert found == {"role": "assistant", "content": ""}


def test_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": text} for text in ("one ", "two")]
    assert plain("", role="user", content=parts) == {"role": "user", "content": "one two"}


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    sent = {"role": "developer", "content": "Be short."}
    assert plain("{{ message.role }}", **sent)["role"] == "system"
    knows = "{% if message.role in ('system', 'developer') %}"
    assert plain(knows, **sent)["role"] == "developer"


def test_templates_may_know_more() -> None:
    sent = {"role": "wizard", "content": "a", "foo": 1}
    assert plain("{% if m.role == 'wizard' %}{{ m.foo }}", **sent) == sent


def test_what_clients_send_back_is_taken() -> None:
    said = {"role": "assistant", "content": "a", "name": "b", "reasoning_content": "c"}
    assert plain("", **said, annotations=[], audio=None, tool_calls=None) == said


@pytest.mark.parametrize("arguments", ["", " ", "{}"])
def test_calls_without_arguments(arguments: str) -> None:
    """Clients write down that there are none in several ways."""
    made = {**CALL, "function": {"name": "now", "arguments": arguments}}
    (call,) = plain("{{ m.tool_calls }}", role="assistant", tool_calls=[made])["tool_calls"]
    assert call["function"]["arguments"] == {}


def test_calls_are_objects() -> None:
    sent = {"role": "assistant", "tool_calls": [CALL]}
    (call,) = plain("{{ m.tool_calls }}", **sent)["tool_calls"]
    assert call["function"]["arguments"] == {"to": "Rome"}
    assert isinstance(CALL["function"]["arguments"], str)


@pytest.mark.parametrize(
    ("template", "message", "words"),
    [
        ("", {"role": "assistant", "tool_calls": [CALL]}, "template does not write"),
        ("my_tool_calls_", {"role": "assistant", "tool_calls": [CALL]}, "does not write"),
        ("", {"role": "wizard", "content": "a"}, r"messages\[0\].role is 'wizard', which"),
        ("", {"role": "user", "content": "a", "foo": 1}, r"messages\[0\] has foo, which"),
        ("", {"role": "user"}, r"messages\[0\] of role 'user' has no content; send"),
        ("", {"role": "tool", "content": None}, "of role 'tool' has no content"),
        (
            "tool_calls",
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]},
            "are no JSON",
        ),
    ],
)
def test_what_a_template_would_lose_is_refused(template: str, message: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plain(template, **message)
