"""The form of an answer that must call tools."""

from __future__ import annotations

import json

import pytest

from cacheshrink_hybrid.engine import SamplingParams
from cacheshrink_hybrid.engine.grammar import GrammarVocabulary, grammar_of
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.serving.schema import ChatRequest
from cacheshrink_hybrid.serving.tool_choice import forced_schema, offered_tools
from tests.engine.shipped import shipped_model

PLACE = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/Place"}},
    "required": ["at"],
    "additionalProperties": False,
    "$defs": {
        "Place": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        }
    },
}
TOOLS = [
    {"type": "function", "function": {"name": "ping"}},
    {"type": "function", "function": {"name": "go", "parameters": PLACE}},
]


def schema(**wish) -> dict:
    sent = ChatRequest(messages=[{"role": "user", "content": "a"}], tools=TOOLS, **wish)
    found = forced_schema(sent)
    assert found is not None
    return found


def fits(of: dict, said: object) -> bool:
    """Whether a grammar of the schema takes this."""
    tokenizer = shipped_model()[1]
    vocabulary = GrammarVocabulary(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    grammar = grammar_of(SamplingParams(json_schema=of))
    assert grammar is not None
    matcher = vocabulary.matcher(grammar)
    text = json.dumps(said, separators=(",", ":"))
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


GO = {"name": "go", "arguments": {"at": {"city": "Rome"}}}
PING = {"name": "ping", "arguments": {}}


@pytest.mark.parametrize(
    ("said", "due"),
    [
        ([PING], True),
        ([GO], True),
        ([GO, PING], True),
        ([], False),
        ([{"name": "go", "arguments": {"at": {"city": 3}}}], False),
        ([{"name": "pong", "arguments": {}}], False),
        ([{"name": "ping", "arguments": {"a": 1}}], False),
    ],
)
def test_required_calls(said: list, due: bool) -> None:
    assert fits(schema(tool_choice="required"), said) is due


def test_one_call_at_most() -> None:
    single = schema(tool_choice="required", parallel_tool_calls=False)
    assert fits(single, [GO]) and not fits(single, [GO, PING])


def test_a_named_tool_has_its_own_schema() -> None:
    named = schema(tool_choice={"type": "function", "function": {"name": "go"}})
    assert named == PLACE
    assert not fits(named, "Rome")
    assert SamplingParams(json_schema=named)
    assert fits(named, GO["arguments"])


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": PLACE["properties"], "$defs": PLACE["$defs"]},
        {"$ref": "#/$defs/Any", "$defs": {"Any": {"additionalProperties": True}}},
        {},
        None,
    ],
)
def test_arguments_are_an_object(parameters: dict | None) -> None:
    tool = {"type": "function", "function": {"name": "go", "parameters": parameters}}
    for choice in ("required", {"type": "function", "function": {"name": "go"}}):
        sent = ChatRequest(
            messages=[{"role": "user", "content": "a"}], tools=[tool], tool_choice=choice
        )
        made = forced_schema(sent)
        assert made is not None
        for said, due in (({}, True), (5, False), ("a", False), ([], False), (None, False)):
            whole = [{"name": "go", "arguments": said}] if choice == "required" else said
            assert fits(made, whole) is due


def allowed(mode: str, *names: str) -> ChatRequest:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return ChatRequest(
        messages=[{"role": "user", "content": "a"}],
        tools=TOOLS,
        tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}},
    )


def test_allowed_tools_leave_out_the_others() -> None:
    free = allowed("auto", "go")
    assert [tool["function"]["name"] for tool in offered_tools(free)] == ["go"]
    assert forced_schema(free) is None
    forced = forced_schema(allowed("required", "go"))
    assert forced is not None
    assert fits(forced, [GO]) and not fits(forced, [PING]) and not fits(forced, [])
    both = forced_schema(allowed("required", "ping", "go"))
    assert both is not None
    assert fits(both, [PING, GO])
    for mode in ("auto", "required"):
        with pytest.raises(ConfigError, match="names 'fly', and the tools are"):
            offered_tools(allowed(mode, "go", "fly"))


def test_free_choices() -> None:
    for choice in (None, "auto", "none"):
        sent = ChatRequest(
            messages=[{"role": "user", "content": "a"}], tools=TOOLS, tool_choice=choice
        )
        assert forced_schema(sent) is None
