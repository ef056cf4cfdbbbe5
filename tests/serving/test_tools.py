"""Tools through OpenAI's own client: calls that a model writes, and forms that are calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import openai
import pytest
from pydantic import BaseModel

from tests.serving.live import NAME, Live, live_server

TALK = [{"role": "user", "content": "Return the"}]


class Place(BaseModel):
    city: str


class Trip(BaseModel):
    place: Place
    days: int


TRIP = openai.pydantic_function_tool(Trip, name="trip")
PING = {"type": "function", "function": {"name": "ping"}}
TOOLS = [TRIP, PING]
STRING = {"type": "string"}
CALL = '<tool_call>{"name": "ping", "arguments": {"n": 1}}</tool_call>'


@pytest.fixture(scope="module")
def hermes() -> Iterator[Live]:
    with live_server(answer_format="hermes") as running:
        yield running


@pytest.fixture(scope="module")
def asker(hermes: Live) -> openai.OpenAI:
    return hermes.client()


def written(text: str) -> dict:
    """Settings by which the model writes this and nothing else."""
    return {
        "model": NAME,
        "messages": TALK,
        "max_completion_tokens": 400,
        "temperature": 0,
        "extra_body": {"structured_outputs": {"regex": re.escape(text).replace("/", r"\/")}},
    }


def test_calls_are_read_from_the_answer(asker: openai.OpenAI) -> None:
    create = asker.chat.completions.create
    answer = create(**written(f"I ask. {CALL}\n{CALL}"), tools=TOOLS).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content == "I ask."
    assert [call.function.name for call in answer.message.tool_calls] == ["ping", "ping"]
    assert json.loads(answer.message.tool_calls[0].function.arguments) == {"n": 1}
    assert len({call.id for call in answer.message.tool_calls}) == 2
    single = create(**written(f"{CALL}{CALL}"), tools=TOOLS, parallel_tool_calls=False)
    assert len(single.choices[0].message.tool_calls) == 1
    assert single.choices[0].message.content is None
    for without in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        words = create(**written(CALL), **without).choices[0]
        assert (words.message.content, words.message.tool_calls) == (CALL, None)
        assert words.finish_reason == "stop"


def test_a_conversation_goes_on_with_the_calls(asker: openai.OpenAI) -> None:
    create = asker.chat.completions.create
    message = create(**written(CALL), tools=TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "pong"}
    settings = written("Done.")
    settings["messages"] = [*TALK, message, result]
    assert create(**settings, tools=TOOLS).choices[0].message.content == "Done."


def test_streams_tell_of_calls(asker: openai.OpenAI) -> None:
    settings = written(f"I ask. {CALL}\n{CALL}")
    chunks = asker.chat.completions.create(**settings, tools=TOOLS, stream=True)
    content, calls, ends = "", {}, []
    for chunk in chunks:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            calls[call.index] = call
        ends.append(choice.finish_reason)
    assert content == "I ask."
    assert sorted(calls) == [0, 1]
    assert json.loads(calls[1].function.arguments) == {"n": 1}
    assert [end for end in ends if end] == ["tool_calls"]
    with asker.chat.completions.stream(**settings, tools=TOOLS) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["ping", "ping"]


def test_calls_that_have_to_be_made(asker: openai.OpenAI) -> None:
    settings = {"model": NAME, "messages": TALK, "max_completion_tokens": 300, "seed": 1}
    settings["logit_bias"] = {"3": -100, "4": -100}  # no whitespace
    create = asker.chat.completions.create
    named = {"type": "function", "function": {"name": "ping"}}
    answer = create(**settings, tools=TOOLS, tool_choice=named).choices[0]
    assert answer.finish_reason == "stop"
    assert [call.function.name for call in answer.message.tool_calls] == ["ping"]
    assert json.loads(answer.message.tool_calls[0].function.arguments) == {}
    both = create(
        **settings, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, temperature=0
    ).choices[0]
    (call,) = both.message.tool_calls
    assert both.finish_reason == "tool_calls"
    assert call.function.name in ("trip", "ping")


@pytest.mark.parametrize("stop", ["name", '"'])
def test_calls_that_a_stop_string_cuts_off_are_text(asker: openai.OpenAI, stop: str) -> None:
    settings = {"model": NAME, "messages": TALK, "max_completion_tokens": 300, "temperature": 0}
    answer = asker.chat.completions.create(
        **settings, tools=TOOLS, tool_choice="required", stop=stop
    ).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.tool_calls is None
    assert answer.message.content.startswith("[")


def test_tools_that_the_template_does_not_show() -> None:
    """They are refused where the model would choose among them, and not where it must."""
    with live_server() as live:
        tokenizer = live.llm.tokenizer
        shown = tokenizer.chat_template
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        try:
            create = live.client().chat.completions.create
            settings = {"model": NAME, "messages": TALK, "max_tokens": 1, "tools": [PING]}
            with pytest.raises(openai.BadRequestError, match="does not show them") as refused:
                create(**settings)
            assert refused.value.param == "tools"
            assert create(**settings, tool_choice="none").choices
            settings["logit_bias"] = {"3": -100, "4": -100}  # no whitespace
            named = {"type": "function", "function": {"name": "ping"}}
            forced = create(**settings | {"max_tokens": 50}, tool_choice=named)
            assert forced.choices[0].message.tool_calls
        finally:
            tokenizer.chat_template = shown


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": STRING}}],
                "tool_choice": "required",
            },
            "tools has parameters of type 'string' for 'f', and",
        ),
        ({"tool_choice": "required"}, "there are no tools"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "pong"}}},
            "tool_choice names 'pong', and the tools are",
        ),
        (
            {
                "tools": TOOLS,
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "leave out response_format",
        ),
        (
            {"tools": TOOLS, "response_format": {"type": "json_object"}},
            "response_format of type json_object leaves no room for calls",
        ),
        ({"tools": [{"type": "function"}]}, "tools: field required"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice: input should be"),
        ({"tools": [{"type": "web_search"}]}, "tools: input should be 'function'"),
    ],
)
def test_wishes_that_make_no_sense(asker: openai.OpenAI, wish: dict, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        asker.chat.completions.create(model=NAME, messages=TALK, max_tokens=2, **wish)
