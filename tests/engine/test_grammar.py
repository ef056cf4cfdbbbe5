"""Texts are of the form that was asked for, whatever the model would rather say."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import re

import pytest
import torch

from cacheshrink_hybrid.engine import LLM, SamplingParams, grammar
from cacheshrink_hybrid.engine.grammar import GrammarRule, GrammarVocabulary, grammar_of
from cacheshrink_hybrid.engine.token_bytes import TokenBytes
from cacheshrink_hybrid.errors import ConfigError
from tests.engine.idle import assert_idle
from tests.engine.shipped import shipped_model
from tests.engine.test_llm import MEMORY, model_of
from tests.engine.tokenizers import TOKENIZERS

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"type": "integer", "minimum": 3, "maximum": 12},
        "kind": {"enum": ["a", "bc"]},
    },
    "required": ["name", "size", "kind"],
    "additionalProperties": False,
}


def shipped(**settings) -> LLM:
    return LLM(*shipped_model(), cache_memory=16 << 20, **settings)


def rule(name: str, **wish) -> GrammarRule:
    tokenizer = TOKENIZERS[name]()
    vocabulary = GrammarVocabulary(tokenizer, len(tokenizer) + 5, [tokenizer.eos_token_id])
    form = grammar_of(SamplingParams(**wish))
    assert form is not None
    return GrammarRule(vocabulary, form, 0)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("regex", ["[0-9]{3}-(ab|cd)+!", "yes|no", "[a-c]{5,9}", "x\\.y*z"])
def test_regular_expressions(regex: str, temperature: float) -> None:
    llm = shipped()
    wish = SamplingParams(regex=regex, temperature=temperature, seed=1, n=4, max_tokens=40)
    for output in llm.generate("Return", wish):
        if output.finish_reason == "stop":
            assert re.fullmatch(regex, output.text)
        else:
            assert len(output.token_ids) == 40
        assert output.text.isascii()
    assert_idle(llm)


def test_json_of_a_schema() -> None:
    llm = shipped()
    wish = SamplingParams(
        json_schema=SCHEMA,
        temperature=1.0,
        seed=0,
        n=3,
        max_tokens=90,
        logit_bias={3: -100, 4: -100},  # no whitespace
    )
    for output in llm.generate("{", wish):
        assert output.finish_reason == "stop"
        found = json.loads(output.text)
        assert sorted(found) == ["kind", "name", "size"]
        assert 3 <= found["size"] <= 12 and found["kind"] in ("a", "bc")
        assert len(found["name"]) <= 6
    assert_idle(llm)


def test_a_grammar() -> None:
    """With rules that refer to each other, as no regular expression has."""
    wish = SamplingParams(
        grammar='start: "(" start ")" | NUMBER\nNUMBER: /[1-9]/',
        temperature=2.0,
        seed=0,
        n=4,
        max_tokens=40,
    )
    for output in shipped().generate("Return", wish):
        if output.finish_reason == "stop":
            inner = output.text.strip("()")
            assert inner in "123456789" and len(inner) == 1
            depth = len(output.text) // 2
            assert output.text == "(" * depth + inner + ")" * depth
        else:
            assert set(output.text) == {"("}


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_text_that_may_end_or_go_on(ignore_eos: bool) -> None:
    wish = SamplingParams(
        regex="[ab]+", temperature=1.0, seed=0, n=4, max_tokens=60, ignore_eos=ignore_eos
    )
    for output in shipped().generate("Return", wish):
        assert re.fullmatch("[ab]+", output.text)
        assert (output.finish_reason == "stop") == (output.token_ids[-1] == 1)


@pytest.mark.parametrize("name", ["byte fallback", "byte level", "characters"])
@pytest.mark.parametrize("space", ["", " "])
def test_every_token_that_is_allowed_goes_on_with_the_text(name: str, space: str) -> None:
    """Of every kind of tokenizer, where one text is left and where there are several."""
    tokenizer = TOKENIZERS[name]()
    size = len(tokenizer) + 5
    text = space + ("a1 b2" if name == "characters" else "Zürich 世")
    for regex, more in ((text, ""), (f"{text}|{text}!+", "!")):
        one, tokens, written = rule(name, regex=regex), [], b""
        while written != text.encode():
            logits = model_logits(one, tokens, size)
            allowed = (logits == 0).nonzero()[:, 0].tolist()
            assert allowed and tokenizer.eos_token_id not in allowed
            pieces = [TokenBytes(tokenizer)(token) for token in allowed]
            assert all((text + more).encode().startswith(written + piece) for piece in pieces)
            assert not one.is_complete(tokens)
            tokens.append(allowed[-1])
            written += pieces[-1]
        assert one.is_complete(tokens) == (not more)


def model_logits(one: GrammarRule, tokens: list[int], size: int):
    logits = torch.zeros(size)
    one.apply(logits, tokens)
    return logits


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"regex": "("}, "unclosed group"),
        ({"regex": "(?=x)y"}, "look-around"),
        ({"json_schema": {"type": "strange"}}, "Invalid type: strange"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "Unsatisfiable"),
        ({"json_schema": {"not": {}}}, "Unimplemented"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "does not exist"),
    ],
)
def test_forms_that_cannot_be_had(wish: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be had: .*{re.escape(message)}"):
        shipped().generate("a", SamplingParams(**wish))


@pytest.mark.parametrize(
    "wish",
    [
        {"regex": "é+"},
        {"regex": "[a-z]{3}é"},
        {"json_schema": {"const": "é"}},
        {"json_schema": {"type": "object", "required": ["naïve"]}},
    ],
)
def test_forms_of_characters_that_the_tokenizer_lacks(wish: dict) -> None:
    llm = shipped()
    with pytest.raises(ConfigError, match="no token of this tokenizer goes on"):
        llm.generate("x", SamplingParams(**wish, max_tokens=40))
    assert_idle(llm)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"regex": 5}, "regex=5 must be a string"),
        ({"json_schema": "no json"}, "json_schema='no json' must be an object"),
        ({"json_schema": [1]}, "must be an object"),
        ({"json_schema": {"a": {1, 2}}}, "that JSON can hold"),
        ({"json_schema": {}, "regex": "a"}, "regex and json_schema exclude each other"),
        ({"grammar": "start: 3", "regex": "a"}, "regex and grammar exclude each other"),
        ({"grammar": 3}, "grammar=3 must be a string"),
    ],
)
def test_forms_that_are_none(wish: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**wish)


def _nested(levels: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def test_schemas_of_many_levels_are_read_or_refused() -> None:
    assert grammar_of(SamplingParams(json_schema=_nested(30)))
    with pytest.raises(ConfigError, match=r"cannot be read: .*fewer levels"):
        grammar_of(SamplingParams(json_schema=_nested(200)))


def test_what_a_form_costs_is_limited(monkeypatch, capfd) -> None:
    monkeypatch.setattr(grammar, "LEXER_FUEL", 500)
    words = "|".join(f"word{i}" for i in range(500))
    with pytest.raises(ConfigError, match=r"cannot be had: .*too big.*; change the regex"):
        rule("byte level", regex=words)
    assert capfd.readouterr() == ("", "")  # a server's log is JSON


def test_a_form_that_grows_too_costly_on_the_way_is_told_so() -> None:
    one = rule("byte level", regex="[a-z]{5}")
    one._matcher = _TooCostly()
    with pytest.raises(ConfigError, match=r"takes more to go on with .*\(lexer error: much\)"):
        one.apply(torch.zeros(one._vocabulary.size), [])


class _TooCostly:
    """An automaton that has given up."""

    def compute_bitmask(self) -> bytes:
        return bytes(1000)

    def is_accepting(self) -> bool:
        return False

    def is_error(self) -> bool:
        return True

    def get_error(self) -> str:
        return "lexer error: much <state>"


def test_prompts_that_ask_for_the_same_form_share_its_first_step(monkeypatch) -> None:
    one = rule("byte level", regex="[ab]{3}")
    other = GrammarRule(one._vocabulary, one._grammar, 0)
    assert one._vocabulary._begun(one._grammar) is one._vocabulary._begun(one._grammar)
    size = one._vocabulary.size
    first = model_logits(one, [], size)
    tokens = [int(first.argmax())]
    model_logits(one, tokens, size)
    assert torch.equal(model_logits(other, [], size), first)  # has read nothing


def test_schemas_may_be_json_already() -> None:
    both = [SamplingParams(json_schema=given) for given in (SCHEMA, json.dumps(SCHEMA))]
    assert both[0] == both[1]
    assert len({*both}) == 1


def test_a_model_without_a_tokenizer_and_a_missing_package(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="need the tokenizer"):
        LLM(model_of("llama"), cache_memory=MEMORY).generate([5], SamplingParams(regex="a"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "llguidance" else find(name)
    )
    with pytest.raises(ConfigError, match=r"need llguidance, .*pip install"):
        grammar_of(SamplingParams(regex="a"))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_goes_on_in_the_same_text(make) -> None:
    one = rule("characters", regex="[0-9]{3}-[ab]")
    tokens = TOKENIZERS["characters"]()("123-a", add_special_tokens=False).input_ids
    one.is_complete(tokens[:3])
    other = make(one)
    size = len(TOKENIZERS["characters"]()) + 5
    assert model_logits(one, tokens[:4], size).equal(model_logits(other, tokens[:4], size))
    assert other.is_complete(tokens)


def test_with_other_rules() -> None:
    """What the form leaves no room for is told."""
    llm = shipped()
    wish = SamplingParams(regex="[ab]{4}", bad_words=["a"], max_tokens=9)
    assert llm.generate("Return", wish)[0].text == "bbbb"
    with pytest.raises(ConfigError, match="forbid every next token"):
        llm.generate("Return", SamplingParams(regex="a", bad_words=["a"]))
    assert_idle(llm)
