"""What clients send by habit changes nothing where it says nothing."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cacheshrink_hybrid.serving.neutral_fields import (
    CHAT_NEUTRAL,
    COMPLETION_NEUTRAL,
    words_of_unread,
)
from cacheshrink_hybrid.serving.schema import ChatRequest, CompletionRequest
from tests.serving.live import Live

TALK = [{"role": "user", "content": "a"}]
KINDS = {
    CompletionRequest: {"prompt": "a"},
    ChatRequest: {"messages": TALK},
}
OF_OPENAI = (
    *("audio", "function_call", "functions", "moderation", "prediction", "prompt_cache_options"),
    *("prompt_cache_retention", "reasoning_effort", "suffix", "verbosity", "web_search_options"),
)
"""Optional fields of OpenAI that nothing here reads."""


@pytest.mark.parametrize("kind", KINDS)
def test_none_is_not_sent(kind) -> None:
    own = KINDS[kind]
    names = [*kind.model_fields, *kind.neutral, *OF_OPENAI]
    sent = kind.model_validate({name: None for name in names} | own)
    assert sent == kind.model_validate(own)
    assert sent.model_fields_set == set(own)
    for needed in own:
        with pytest.raises(ValidationError, match="Field required"):
            kind.model_validate({needed: None})


def test_none_is_not_sent_inside_either() -> None:
    parts = {
        "messages": [{"role": "user", "content": "a", "name": None, "audio": None}],
        "tools": [{"type": "function", "function": {"name": "f", "description": None}}],
        "response_format": {"type": "text", "json_schema": None, "new": None},
        "stream_options": {"include_usage": True, "new": None},
    }
    sent = ChatRequest.model_validate(parts)
    assert sent.model_dump(exclude_unset=True) == {
        "messages": [{"role": "user", "content": "a"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "response_format": {"type": "text"},
        "stream_options": {"include_usage": True},
    }
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": None}}}
    kept = ChatRequest.model_validate({"messages": TALK, "response_format": schema})
    assert kept.response_format.json_schema.schema_ == {"const": None}


@pytest.mark.parametrize("kind", KINDS)
def test_neutral_values_change_nothing_and_others_are_refused(kind) -> None:
    own = KINDS[kind]
    for name, values in kind.neutral.items():
        assert name not in kind.model_fields
        for value in values:
            assert kind.model_validate(own | {name: value}) == kind.model_validate(own)
        for other in ("x", 5, {"a": 1}, *(not value for value in values)):
            if any(type(other) is type(value) and other == value for value in values):
                continue
            with pytest.raises(ValidationError) as refused:
                kind.model_validate(own | {name: other})
            (error,) = refused.value.errors()
            assert (error["type"], error["loc"]) == ("extra_forbidden", (name,))


def test_a_truth_is_no_number() -> None:
    for name, value in (("priority", False), ("length_penalty", True), ("echo", 0)):
        with pytest.raises(ValidationError):
            ChatRequest.model_validate({"messages": TALK, name: value})


def test_words() -> None:
    assert words_of_unread("magic") == "is not known"
    assert "send tools" in words_of_unread("functions")
    for name in (*COMPLETION_NEUTRAL, *CHAT_NEUTRAL):
        assert "not known" not in words_of_unread(name)


def test_a_server_takes_them(live: Live) -> None:
    with live.http() as http:
        for path, own, neutral in (
            ("/v1/completions", {"prompt": "a"}, COMPLETION_NEUTRAL),
            ("/v1/chat/completions", {"messages": TALK}, CHAT_NEUTRAL),
        ):
            body = own | {"max_tokens": 2, "temperature": 0, "magic": None}
            body |= {name: (*values, None)[0] for name, values in neutral.items()}
            answer = http.post(path, json=body)
            assert answer.status_code == 200, answer.text
            refused = http.post(path, json=body | {"priority": 1})
            assert refused.status_code == 400
            assert "priority: is taken only with the value" in refused.json()["error"]["message"]
