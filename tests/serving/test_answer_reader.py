"""Texts in the formats that models write, read whole and piece by piece."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.serving.answer_formats import FORMATS, answer_parts
from cacheshrink_hybrid.serving.answer_reader import (
    AnswerReader,
    ForcedReader,
    Part,
    PartsReader,
    PlainReader,
    ToolCall,
)
from tests.engine.shipped import shipped_model

CITY = {"city": "Rome", "days": 3}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
CALL = json.dumps({"name": "weather", "arguments": CITY})
WRITTEN = {
    "hermes": ("{% if tools %}<tool_call>{% endif %}", f"<tool_call>\n{CALL}\n</tool_call>"),
    "xml": (
        "<tool_call>\n<function=f>\n<parameter=p>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n"
        "3\n</parameter>\n</function>\n</tool_call>",
    ),
    "granite": ("<|tool_call|>", f"<|tool_call|>[{CALL}]"),
    "mistral": ("[TOOL_CALLS]", f"[TOOL_CALLS] [{CALL}]"),
    "mistral_args": ("[TOOL_CALLS] [ARGS]", f"[TOOL_CALLS]weather[ARGS]{json.dumps(CITY)}"),
    "deepseek_v31": (
        "<｜tool▁call▁begin｜>",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{json.dumps(CITY)}"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek": (
        "<｜tool▁call▁begin｜> ```json",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        f"{json.dumps(CITY)}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "llama": (
        'ipython {"name": , "parameters": }',
        json.dumps({"name": "weather", "parameters": CITY}),
    ),
}
"""A sign of each format in a chat template, and a call."""
TWICE = ("hermes", "xml", "mistral_args", "deepseek", "deepseek_v31")
SPEAKS_BEFORE = [name for name in WRITTEN if name != "llama"]


def tokenizer_with(template: str | None, **settings) -> PreTrainedTokenizerBase:
    made = copy.deepcopy(shipped_model()[1])
    made.chat_template = template
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def reader(name: str, *, prompt: str = "", calls: bool = True) -> PartsReader:
    described = answer_parts(tokenizer_with(WRITTEN[name][0] + "</think>")).described(calls=calls)
    assert described is not None
    return PartsReader(described, prompt, [TOOL] if calls else [])


def read(made: AnswerReader, text: str, *, size: int = 1, whole: bool = True) -> Part:
    """All parts together."""
    parts: list[Part] = []
    for begin in range(0, len(text), size):
        parts += made.read(text[begin : begin + size])
    parts += made.end(whole=whole)
    return Part(
        content="".join(part.content for part in parts),
        reasoning="".join(part.reasoning for part in parts),
        calls=tuple(call for part in parts for call in part.calls),
    )


def names(calls: Sequence[ToolCall]) -> list[str]:
    return [call.name for call in calls]


def test_all_formats_are_tried() -> None:
    assert {row.name for row in FORMATS if row.calls is not None} == set(WRITTEN)


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_the_page_has_all_formats(row) -> None:
    page = Path(__file__).parents[2] / "docs" / "SERVE.md"
    assert f"- `{row.name}`: {row.words}." in page.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("name", WRITTEN)
def test_calls(name: str, size: int) -> None:
    template, text = WRITTEN[name]
    assert answer_parts(tokenizer_with(template)).name == name
    found = read(reader(name), text, size=size)
    assert names(found.calls) == ["weather"]
    assert json.loads(found.calls[0].arguments) == CITY
    assert (found.content, found.reasoning) == ("", "")


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("name", SPEAKS_BEFORE)
def test_thoughts_and_words_before_calls(name: str, size: int) -> None:
    text = f"<think>\nHm, rain?\n</think>\n\nI will look.{WRITTEN[name][1]}"
    found = read(reader(name), text, size=size)
    assert (found.reasoning, found.content) == ("Hm, rain?", "I will look.")
    assert names(found.calls) == ["weather"]


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("name", TWICE)
def test_several_calls(name: str, size: int) -> None:
    text = "\n".join([WRITTEN[name][1]] * 2) if name != "mistral_args" else WRITTEN[name][1] * 2
    found = read(reader(name), text, size=size)
    assert names(found.calls) == ["weather"] * 2
    assert found.content == ""


def test_thoughts_that_the_prompt_begins() -> None:
    made = reader("hermes", prompt="<think>")
    assert read(made, "so\n</think>\nYes.") == Part(reasoning="so", content="Yes.")


@pytest.mark.parametrize("name", WRITTEN)
def test_answers_without_calls_are_said_at_once(name: str) -> None:
    made = reader(name)
    assert [part.content for part in made.read("Hello")] == ["Hello"]
    assert [part.content for part in made.read(" there")] == [" there"]
    assert made.end(whole=True) == []


@pytest.mark.parametrize("name", SPEAKS_BEFORE)
def test_without_tools_calls_are_words(name: str) -> None:
    text = WRITTEN[name][1]
    assert read(reader(name, calls=False), text) == Part(content=text)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "broken",
    ['{"name": "weather", "arguments": {', '{"arguments": {}}', '"weather"', "[1]", "no JSON"],
)
def test_what_is_no_call_is_content_as_it_stands(broken: str, size: int) -> None:
    text = f"Look:\n<tool_call>{broken}</tool_call> and more"
    assert read(reader("hermes"), text, size=size) == Part(content=text)


def test_a_call_that_is_cut_off_is_content() -> None:
    text = '<tool_call>{"name": "wea'
    assert read(reader("hermes"), text, whole=False) == Part(content=text)


def test_what_was_called_before_stays_called() -> None:
    found = read(reader("hermes"), f"{WRITTEN['hermes'][1]}\n<tool_call>oh</tool_call>")
    assert names(found.calls) == ["weather"]
    assert "oh" in found.content and "weather" not in found.content


def test_the_tokenizers_own_description() -> None:
    own = {
        "start_anchor": "ANSWER:",
        "fields": {
            "content": {"content": "text"},
            "thinking": {"open": "(", "close": ")", "content": "text"},
            "tool_calls": {
                "open_pattern": r"!(?P<name>\w+)",
                "close": ";",
                "repeats": True,
                "content": "kv-lines",
                "content_args": {"line_sep": ",", "kv_sep": "="},
                "transform": {
                    "type": "function",
                    "function": {"name": "{name}", "arguments": "{content}"},
                },
            },
        },
    }
    parts = answer_parts(tokenizer_with("<tool_call>", response_template=own))
    assert parts.own and parts.has_special
    described = parts.described(calls=True)
    assert described is not None
    made = PartsReader(described, "Q: (no) ANSWER: (wait", [TOOL])
    found = read(made, " a bit) Sure. !weather city=Rome, days=3;")
    assert (found.reasoning.strip(), found.content.strip()) == ("a bit", "Sure.")
    assert json.loads(found.calls[0].arguments) == CITY
    assert answer_parts(tokenizer_with("", response_template=own), "hermes").name == "hermes"


def test_formats_by_name() -> None:
    tokenizer = tokenizer_with("<tool_call> </think>")
    plain = answer_parts(tokenizer, "plain")
    assert plain.described(calls=True) is None and not plain.has_calls
    assert answer_parts(tokenizer, "mistral").has_calls
    assert answer_parts(tokenizer_with(None)).name == "plain"
    assert (
        answer_parts(tokenizer_with({"default": "", "tool_use": "[TOOL_CALLS]"})).name == "mistral"
    )
    with pytest.raises(ConfigError, match="'hermus' is no format of answers; give one of auto"):
        answer_parts(tokenizer, "hermus")


def test_marks_that_are_special_tokens() -> None:
    tokenizer = tokenizer_with("[TOOL_CALLS]")
    assert not answer_parts(tokenizer).has_special
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    assert answer_parts(tokenizer).has_special


def test_forced_calls() -> None:
    said = json.dumps([{"name": "weather", "arguments": CITY}] * 2)
    assert names(read(ForcedReader(None), said).calls) == ["weather"] * 2
    named = ForcedReader("weather")
    assert not named.chose_calls
    assert json.loads(read(named, json.dumps(CITY)).calls[0].arguments) == CITY
    assert read(ForcedReader(None), said[:9], whole=False) == Part(content=said[:9])


def test_plain_answers() -> None:
    text = "<think>no</think> <tool_call>{}</tool_call>"
    assert read(PlainReader(), text, size=3) == Part(content=text)
