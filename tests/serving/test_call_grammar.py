"""Grammars of answers that may call tools: what they take, and that it reads as calls."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerBase

from cacheshrink_hybrid.engine import SamplingParams
from cacheshrink_hybrid.engine.grammar import GrammarVocabulary, grammar_of
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.serving.answer_formats import FORMATS, AnswerParts, answer_parts
from cacheshrink_hybrid.serving.answer_reader import PartsReader
from cacheshrink_hybrid.serving.call_grammar import json_terminal, regex_terminal
from cacheshrink_hybrid.serving.schema import ChatRequest
from cacheshrink_hybrid.serving.tool_choice import free_grammar
from tests.engine.tokenizers import TOKENIZERS

GO = {
    "type": "function",
    "function": {
        "name": "go",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/City"}},
            "required": ["to"],
            "additionalProperties": False,
            "$defs": {"City": {"enum": ["Rome", "Oslo"]}},
        },
    },
}
LOOSE = {"type": "function", "function": {"name": "say", "parameters": {"type": "object"}}}
WRITTEN = [row.name for row in FORMATS if row.written is not None]
SIZE = json_terminal({"enum": ["big", "small"]})
every_format = pytest.mark.parametrize("name", WRITTEN)


def tokenizer() -> PreTrainedTokenizerBase:
    return TOKENIZERS["byte level"]()


def parts_of(name: str) -> AnswerParts:
    return answer_parts(tokenizer(), name)


def alone(name: str) -> bool:
    """Whether an answer of a format has one call, and nothing else."""
    return next(row.written.alone for row in FORMATS if row.name == name and row.written)


def call(name: str, tool: str, arguments: dict) -> str:
    """As models of a format write it, without what stands around all calls."""
    written = next(row.written for row in FORMATS if row.name == name)
    assert written is not None
    return written.before(tool) + json.dumps(arguments) + written.behind


def calls(name: str, *each: str) -> str:
    written = next(row.written for row in FORMATS if row.name == name)
    assert written is not None
    return written.opens + written.between.join(each) + written.closes


def takes(name: str, text: str, *, form: str | None = None, tools: Sequence = (GO, LOOSE), **wish):
    """Whether an answer may be this text."""
    sent = ChatRequest(messages=[{"role": "user", "content": "a"}], tools=list(tools), **wish)
    made = free_grammar(sent, parts_of(name), form)
    assert made is not None
    known = tokenizer()
    vocabulary = GrammarVocabulary(known, len(known), [known.eos_token_id])
    grammar = grammar_of(SamplingParams(grammar=made))
    assert grammar is not None
    matcher = vocabulary.matcher(grammar)
    tokens = known(text, add_special_tokens=False).input_ids
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@every_format
@pytest.mark.parametrize("form", [None, SIZE])
def test_calls_are_of_their_schemas(name: str, form: str | None) -> None:
    good, wrong = call(name, "go", {"to": "Rome"}), call(name, "go", {"to": "Paris"})
    free = call(name, "say", {"anything": [1, None]})
    assert takes(name, calls(name, good), form=form)
    assert takes(name, calls(name, good, free), form=form) is not alone(name)
    assert not takes(name, calls(name, wrong), form=form)
    assert not takes(name, calls(name, good, wrong), form=form)
    assert not takes(name, calls(name, call(name, "fly", {})), form=form)
    assert not takes(name, calls(name, good, free), form=form, parallel_tool_calls=False)


@every_format
def test_texts_beside_calls(name: str) -> None:
    """Any text, and calls behind it where the format has such; a text of the form, or calls."""
    made = calls(name, call(name, "go", {"to": "Oslo"}))
    assert takes(name, "It is so: {} < 3.")
    assert takes(name, "")
    assert alone(name) or takes(name, f"I go.\n{made}")
    assert not takes(name, f"{made} and more")
    assert takes(name, '"big"', form=SIZE)
    assert not takes(name, '"huge"', form=SIZE)
    assert not takes(name, f'"big"{made}', form=SIZE)


@every_format
def test_what_is_taken_reads_as_calls(name: str) -> None:
    due = [("go", {"to": "Oslo"}), ("say", {"x": {"y": 1}})][: 1 if alone(name) else 2]
    made = calls(name, *(call(name, *each) for each in due))
    assert takes(name, made)
    described = parts_of(name).described(calls=True)
    assert described is not None
    reader = PartsReader(described, "", [GO, LOOSE])
    found = [part for one in made for part in reader.read(one)] + reader.end(whole=True)
    read = [(each.name, json.loads(each.arguments)) for part in found for each in part.calls]
    assert read == due


def test_no_grammar_where_none_is_needed() -> None:
    parts, user = parts_of("hermes"), [{"role": "user", "content": "a"}]
    for wish in ({"tools": [LOOSE]}, {}, {"tools": [GO], "tool_choice": "none"}):
        assert free_grammar(ChatRequest(messages=user, **wish), parts, None) is None
    forced = ChatRequest(messages=user, tools=[GO], tool_choice="required")
    assert free_grammar(forced, parts, SIZE) is None


def test_calls_that_grammars_do_not_know() -> None:
    sent = ChatRequest(messages=[{"role": "user", "content": "a"}], tools=[GO])
    with pytest.raises(ConfigError, match=r"tool 'go' is strict, and in .*plain.* cannot"):
        free_grammar(sent, parts_of("plain"), None)


@pytest.mark.parametrize(
    ("regex", "text", "due"),
    [
        ("a/b", "a/b", True),
        (r"a\/b", "a/b", True),
        (r"a\\/b", r"a\/b", True),
        ("a\nb", "a\nb", True),
        ("a.b", "a/c", False),
    ],
)
def test_regular_expressions_stay_what_they_are(regex: str, text: str, due: bool) -> None:
    assert takes("hermes", text, form=regex_terminal(regex)) is due
