"""How chat models write what they think and which tools they call, one row each.

transformers' `ResponseParser` reads such texts by a description of their parts. A tokenizer may
bring one of its own, as `response_template`; here are those of what models were trained to write,
told apart by their chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..chat_template import template_text
from ..errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
"""In the place of a name: what the tokenizer or its chat template tells."""
CALLS = "tool_calls"
CONTENT = "content"
REASONING = ("reasoning_content", "thinking")
"""Parts of an answer, by their names in descriptions."""
THINK, ENDS_THINKING = "<think>", "</think>"
_FUNCTION = {"type": "function", "function": "{content}"}
_NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
_LISTED = {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}}

_OBJECT = '{"name": "NAME", "arguments": '

_DEEPSEEK_BEGINS = r"\s*(?:<｜tool▁calls▁begin｜>)?\s*<｜tool▁call▁begin｜>"
_DEEPSEEK_ENDS = r"<｜tool▁call▁end｜>(?:<｜tool▁calls▁end｜>|(?=\s*<｜tool▁call▁begin｜>)|$)"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCalls:
    """What stands around the arguments of calls, which are JSON.

    Attributes:
        mark: by which the first call is known; a text without calls does not have it.
        opening: before the arguments of a call, with `NAME` in the place of the tool's name.
        behind: the arguments.
        opens, between, closes: all calls.
        alone: the one call is the whole answer.
    """

    mark: str
    opening: str
    behind: str = ""
    opens: str = ""
    between: str = ""
    closes: str = ""
    alone: bool = False

    def before(self, name: str) -> str:
        """The opening of a call of this tool."""
        quoted = '"NAME"' in self.opening
        return self.opening.replace("NAME", json.dumps(name)[1:-1] if quoted else name)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """How calls of tools are written.

    Attributes:
        name: as `--answer-format`.
        words: what it is, for the documents.
        signs: in chat templates of models that write so, all of them.
        marks: by which a call is known, and which may be special tokens.
        calls: where a call begins and ends and what it holds, as `ResponseParser` reads it; None
            for models that write none.
        written: the same for grammars; None where arguments are no JSON.
    """

    name: str
    words: str
    signs: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    calls: Mapping[str, Any] | None = field(default=None, repr=False)
    written: WrittenCalls | None = None


PLAIN = AnswerFormat(name="plain", words="text, whatever it says")
FORMATS = (
    AnswerFormat(
        name="xml",
        words="`<function=NAME><parameter=KEY>VALUE` in `<tool_call>` (Qwen3-Coder, Qwen3.5)",
        signs=("<function=", "<parameter="),
        marks=("<tool_call>",),
        calls={
            "open_pattern": r"\s*<tool_call>\s*<function=\s*(?P<name>[^>\s]+)\s*>",
            "close_pattern": r"</function>\s*</tool_call>\s*",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<parameter=\s*(?P<key>[^>\s]+)\s*>\n?(?P<value>.*?)\n?</parameter>"
            },
            "transform": _NAMED,
        },
    ),
    AnswerFormat(
        name="granite",
        words="a JSON list behind `<|tool_call|>` (Granite 3)",
        signs=("<|tool_call|>",),
        marks=("<|tool_call|>",),
        calls={
            "open": "<|tool_call|>",
            "content": "json",
            "transform_each": True,
            "transform": _LISTED,
        },
        written=WrittenCalls(
            mark="<|tool_call|>",
            opens="<|tool_call|>[",
            opening=_OBJECT,
            behind="}",
            between=", ",
            closes="]",
        ),
    ),
    AnswerFormat(
        name="hermes",
        words="a JSON object in `<tool_call>` (Hermes, Qwen2.5, Qwen3, Granite 4, SmolLM3)",
        signs=("<tool_call>",),
        marks=("<tool_call>",),
        calls={
            "open_pattern": r"\s*<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": _FUNCTION,
        },
        written=WrittenCalls(
            mark="<tool_call>",
            opening="<tool_call>\n" + _OBJECT,
            behind="}\n</tool_call>",
            between="\n",
        ),
    ),
    AnswerFormat(
        name="mistral_args",
        words="`[TOOL_CALLS]NAME[ARGS]JSON` (Mistral, Magistral and Devstral from 2025 on)",
        signs=("[TOOL_CALLS]", "[ARGS]"),
        marks=("[TOOL_CALLS]",),
        calls={
            "open_pattern": r"\[TOOL_CALLS\](?P<name>[^\[\{]+)(?:\[CALL_ID\][^\[\{]*)?\[ARGS\]",
            "close_pattern": r"(?=\[TOOL_CALLS\])",
            "repeats": True,
            "content": "json",
            "transform": _NAMED,
        },
        written=WrittenCalls(mark="[TOOL_CALLS]", opening="[TOOL_CALLS]NAME[ARGS]"),
    ),
    AnswerFormat(
        name="mistral",
        words="a JSON list behind `[TOOL_CALLS]` (Mistral before)",
        signs=("[TOOL_CALLS]",),
        marks=("[TOOL_CALLS]",),
        calls={
            "open": "[TOOL_CALLS]",
            "content": "json",
            "transform_each": True,
            "transform": _LISTED,
        },
        written=WrittenCalls(
            mark="[TOOL_CALLS]",
            opens="[TOOL_CALLS] [",
            opening=_OBJECT,
            behind="}",
            between=", ",
            closes="]",
        ),
    ),
    AnswerFormat(
        name="deepseek",
        words="JSON in a block of code behind `<｜tool▁sep｜>` (DeepSeek V3, R1)",
        signs=("<｜tool▁call▁begin｜>", "```json"),
        marks=("<｜tool▁call▁begin｜>",),
        calls={
            "open_pattern": _DEEPSEEK_BEGINS + r"function<｜tool▁sep｜>(?P<name>[^\n]+)\n```json\n",
            "close_pattern": r"\n?```" + _DEEPSEEK_ENDS,
            "repeats": True,
            "content": "json",
            "transform": _NAMED,
        },
        written=WrittenCalls(
            mark="<｜tool▁call▁begin｜>",
            opens="<｜tool▁calls▁begin｜>",
            opening="<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
            behind="\n```<｜tool▁call▁end｜>",
            between="\n",
            closes="<｜tool▁calls▁end｜>",
        ),
    ),
    AnswerFormat(
        name="deepseek_v31",
        words="JSON behind `<｜tool▁sep｜>` (DeepSeek V3.1)",
        signs=("<｜tool▁call▁begin｜>",),
        marks=("<｜tool▁call▁begin｜>",),
        calls={
            "open_pattern": _DEEPSEEK_BEGINS + r"(?P<name>[^<\n]+)<｜tool▁sep｜>",
            "close_pattern": _DEEPSEEK_ENDS,
            "repeats": True,
            "content": "json",
            "transform": _NAMED,
        },
        written=WrittenCalls(
            mark="<｜tool▁call▁begin｜>",
            opens="<｜tool▁calls▁begin｜>",
            opening="<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
            behind="<｜tool▁call▁end｜>",
            closes="<｜tool▁calls▁end｜>",
        ),
    ),
    AnswerFormat(
        name="llama",
        words="an answer that is nothing but a JSON object (Llama 3.1 to 3.3)",
        signs=("ipython", '"parameters"'),
        marks=("<|python_tag|>",),
        calls={
            "open_pattern": r'\A\s*(?:<\|python_tag\|>)?\s*(?=\{\s*"name")',
            "content": "json",
            "transform": {
                "type": "function",
                "function": {"name": "{content.name}", "arguments": "{content.parameters}"},
            },
        },
        written=WrittenCalls(
            mark="{",
            opening='{"name": "NAME", "parameters": ',
            behind="}",
            alone=True,
        ),
    ),
    PLAIN,
)
"""Those whose signs another one's template has as well come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerParts:
    """What parts the answers of one model have.

    Attributes:
        name: of the format, or whose description it is.
        description: of the parts, as `ResponseParser` reads it, calls of tools included.
        own: it is the tokenizer's, and may look for where in the prompt an answer begins.
        has_special: its marks are special tokens, which texts leave out unless they are asked for.
        written: how calls are written, for grammars; None where that is not known.
        special: ids of special tokens, by their texts.
    """

    name: str
    description: Mapping[str, Any]
    own: bool
    has_special: bool
    written: WrittenCalls | None = None
    special: Mapping[str, int] = field(default_factory=dict)

    @property
    def has_calls(self) -> bool:
        return CALLS in self.description["fields"]

    def described(self, *, calls: bool) -> Mapping[str, Any] | None:
        """The parts to look for, with or without calls of tools; None where all is content."""
        fields = dict(self.description["fields"])
        if not calls:
            fields.pop(CALLS, None)
        return None if set(fields) <= {CONTENT} else {**self.description, "fields": fields}


def answer_parts(tokenizer: PreTrainedTokenizerBase, name: str = AUTO) -> AnswerParts:
    """What parts a model's answers have.

    Args:
        name: of a format; `auto` takes the tokenizer's own description if it has one, and else
            what its chat template tells.

    Raises:
        ConfigError: there is no such format.
    """
    own: Any = getattr(tokenizer, "response_template", None)
    if name == AUTO and own is not None:
        return AnswerParts(name="the tokenizer's own", description=own, own=True, has_special=True)
    template = template_text(tokenizer)
    row = _row(name, template)
    fields: dict[str, Any] = {CONTENT: {"content": "text"}}
    thinks = name != PLAIN.name and ENDS_THINKING in template
    if thinks:
        fields[REASONING[0]] = {
            "open_pattern": rf"{THINK}\s*",
            "close_pattern": rf"\s*{ENDS_THINKING}\s*",
            "content": "text",
        }
    if row.calls is not None:
        fields[CALLS] = row.calls
    marks = {*row.marks, *((THINK, ENDS_THINKING) if thinks else ())}
    return AnswerParts(
        name=row.name,
        description={"start_anchor_pattern": r"\A", "fields": fields},
        own=False,
        has_special=not marks.isdisjoint(tokenizer.all_special_tokens),
        written=row.written,
        special=dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)),
    )


def _row(name: str, template: str) -> AnswerFormat:
    if name == AUTO:
        return next(row for row in FORMATS if all(sign in template for sign in row.signs))
    found = [row for row in FORMATS if row.name == name]
    if not found:
        known = ", ".join([AUTO, *(row.name for row in FORMATS)])
        raise ConfigError(f"{name!r} is no format of answers; give one of {known}")
    return found[0]
