"""Tools through OpenAI's own client: calls that a model writes, and forms that are calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest
from pydantic import BaseModel

from cacheshrink_hybrid.engine import SamplingParams
from cacheshrink_hybrid.serving import routes, wishes
from cacheshrink_hybrid.serving.answer_formats import AnswerParts
from cacheshrink_hybrid.serving.schema import ChatRequest
from cacheshrink_hybrid.serving.wishes import chat_params
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


WRITES = "writes"


def _params_of_tests(sent: ChatRequest, parts: AnswerParts) -> SamplingParams:
    """Those of the chat, with the text that a test lets the model write."""
    text = (sent.metadata or {}).get(WRITES)
    params = chat_params(sent, parts)
    if text is None:
        return params
    return replace(params, regex=re.escape(text), json_schema=None, grammar=None)


@pytest.fixture(scope="module")
def hermes() -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch, live_server(answer_format="hermes") as running:
        patch.setattr(routes, "chat_params", _params_of_tests)
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
        "metadata": {WRITES: text},
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
            {"tools": [PING | {"function": {"name": "ping", "strict": 1}}]},
            r"tools\[0\].function.strict: input should be a valid boolean",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"type": "object", "properties": {"a": {"not": {}}}},
                        },
                    }
                ]
            },
            "form that was asked for cannot be had",
        ),
        ({"tools": [PING, PING]}, "tools has 2 of the name 'ping'"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\].function: field required"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice: input should be"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type: input should be 'function'"),
    ],
)
def test_wishes_that_make_no_sense(asker: openai.OpenAI, wish: dict, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        asker.chat.completions.create(model=NAME, messages=TALK, max_tokens=2, **wish)


SIZE = {
    "type": "json_schema",
    "json_schema": {
        "name": "size",
        "schema": {
            "type": "object",
            "properties": {"size": {"enum": ["big", "small"]}},
            "required": ["size"],
            "additionalProperties": False,
        },
    },
}
PICK = {
    "type": "function",
    "function": {
        "name": "pick",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"one": {"enum": ["left", "right"]}, "times": {"enum": [1, 2]}},
            "required": ["one", "times"],
            "additionalProperties": False,
        },
    },
}


def avoiding(live: Live, characters: str) -> dict:
    """Wishes by which the model writes these, and whitespace, only where it must."""
    tokens = {token for one in characters for token in live.llm.tokenizer(one).input_ids}
    biased = {3, 4} | tokens - set(live.llm.tokenizer("").input_ids)
    settings = {"model": NAME, "messages": TALK, "max_completion_tokens": 300, "temperature": 0}
    return settings | {"logit_bias": {str(token): -100 for token in biased}}


def told(answer) -> tuple:
    """Content, calls and the reason of the end, of a whole answer."""
    message = answer.choices[0].message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    return message.content, calls, answer.choices[0].finish_reason


def streamed(chunks) -> tuple:
    """The same of a stream."""
    content, calls, ends = "", [], []
    for chunk in chunks:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        calls += [(x.function.name, x.function.arguments) for x in choice.delta.tool_calls or ()]
        ends += [choice.finish_reason] if choice.finish_reason else []
    (end,) = ends
    return content or None, calls, end


def test_calls_or_an_answer_of_the_form(hermes: Live, asker: openai.OpenAI) -> None:
    """Whichever the model begins with, and in a stream as in a whole answer."""
    create = asker.chat.completions.create
    wish = {"tools": [PICK], "response_format": SIZE, "parallel_tool_calls": False}
    for avoided, is_call in (("{", True), ("<", False)):
        settings = avoiding(hermes, avoided) | wish
        content, calls, end = found = told(create(**settings))
        assert streamed(create(**settings, stream=True)) == found
        if is_call:
            ((name, arguments),) = calls
            assert (name, content, end) == ("pick", None, "tool_calls")
            assert json.loads(arguments)["one"] in ("left", "right")
            assert json.loads(arguments)["times"] in (1, 2)
        else:
            assert (calls, end) == ([], "stop")
            assert json.loads(content)["size"] in ("big", "small")
    regex = {"structured_outputs": {"regex": "(yes|no)/[.!]"}}
    plain = create(**avoiding(hermes, "<") | {"tools": [PICK], "extra_body": regex})
    assert told(plain)[0] in ("yes/.", "yes/!", "no/.", "no/!")


def test_calls_that_have_to_be_made_beside_a_form(hermes: Live, asker: openai.OpenAI) -> None:
    """The form is that of other answers."""
    create = asker.chat.completions.create
    named = {"type": "function", "function": {"name": "pick"}}
    for choice in ("required", named):
        settings = avoiding(hermes, "") | {"tools": [PICK], "tool_choice": choice}
        settings |= {"response_format": SIZE, "parallel_tool_calls": False}
        content, ((name, arguments),), _ = found = told(create(**settings))
        assert (name, content) == ("pick", None)
        assert set(json.loads(arguments)) == {"one", "times"}
        assert streamed(create(**settings, stream=True)) == found


def test_strict_tools_leave_text_as_it_is(
    asker: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model says without the mark of a call is what it would say anyway."""
    settings = {"model": NAME, "messages": TALK, "max_completion_tokens": 12, "temperature": 0}
    found = told(asker.chat.completions.create(**settings, tools=[PICK, PING]))
    monkeypatch.setattr(wishes, "free_grammar", lambda *_: None)
    assert found == told(asker.chat.completions.create(**settings, tools=[PICK, PING]))
    assert found[0] and not found[1]


def test_forms_of_calls_that_are_not_known() -> None:
    """Formats whose arguments are no JSON say so, rather than leave out what was asked for."""
    with live_server(answer_format="xml") as live:
        create = live.client().chat.completions.create
        settings = {"model": NAME, "messages": TALK, "max_tokens": 2}
        for wish, why in (({"tools": [PICK]}, "is strict"), ({"response_format": SIZE}, "a form")):
            with pytest.raises(openai.BadRequestError, match=why):
                create(**settings | {"tools": [PING]} | wish)
        assert create(**settings, tools=[PICK], tool_choice="none").choices
