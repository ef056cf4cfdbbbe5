"""Which tools a chat may or must call, and the form of answers that call some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.grammar import check_end
from ..errors import ConfigError
from .answer_formats import AnswerParts
from .call_grammar import CallGrammar
from .schema import ChatRequest, NamedTool, Tool, ToolsChoice

Schema = dict[str, Any]
ANY_ARGUMENTS: Schema = {"type": "object"}
NO_ARGUMENTS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}


def callable_tools(sent: ChatRequest) -> list[Tool]:
    """The tools that the answer may call.

    Raises:
        ConfigError: the choice names tools that there are not, or two tools have one name.
    """
    choice, tools = sent.tool_choice, sent.tools or []
    counts = Counter(tool.function.name for tool in tools)
    for name, count in counts.items():
        if count > 1:
            raise ConfigError(
                f"tools has {count} of the name {name!r:.80}, and a call could not tell which one "
                "it means; give them names of their own"
            )
    if choice == "none":
        return []
    if not isinstance(choice, ToolsChoice):
        return tools
    allowed = [one.function.name for one in choice.allowed_tools.tools]
    for name in allowed:
        _tool_named(name, tools)
    return [tool for tool in tools if tool.function.name in allowed]


def offered_tools(sent: ChatRequest) -> list[dict[str, Any]]:
    """The tools that the chat template shows and the answer may call."""
    return [tool.model_dump(exclude_unset=True) for tool in callable_tools(sent)]


def is_forced(sent: ChatRequest) -> bool:
    """Whether the answer must be calls."""
    choice = sent.tool_choice
    if isinstance(choice, ToolsChoice):
        return choice.allowed_tools.mode == "required"
    return choice not in (None, "none", "auto")


def forced_name(sent: ChatRequest) -> str | None:
    """The only tool that may be called, if the choice names it."""
    choice = sent.tool_choice
    return choice.function.name if isinstance(choice, NamedTool) else None


def forced_schema(sent: ChatRequest) -> Schema | None:
    """Of an answer that must be calls, whatever the form of others; None where it is free.

    Raises:
        ConfigError: there is no such tool.
    """
    if not is_forced(sent):
        return None
    if not sent.tools:
        raise ConfigError("tool_choice asks for a call, and there are no tools; send tools as well")
    tools, wanted = callable_tools(sent), forced_name(sent)
    if wanted is not None:
        return _arguments(_tool_named(wanted, tools), "")
    calls: Schema = {
        "type": "array",
        "items": {"anyOf": [_call(tool, f"/items/anyOf/{i}") for i, tool in enumerate(tools)]},
        "minItems": 1,
    }
    return calls | ({"maxItems": 1} if sent.parallel_tool_calls is False else {})


def free_grammar(sent: ChatRequest, parts: AnswerParts, form: str | None) -> str | None:
    """Of an answer that may have calls: either calls, whose arguments are of the schemas of tools
    that are strict, or an answer of the form that was asked for. None where no grammar is needed.

    Args:
        parts: of the model's answers.
        form: of other answers, as a terminal of a grammar; None for any text.

    Raises:
        ConfigError: it is not known how the model writes the arguments of calls.
    """
    tools = [] if is_forced(sent) else callable_tools(sent)
    strict = [tool.function.name for tool in tools if tool.function.strict]
    if not tools or (form is None and not strict):
        return None
    if parts.written is None:
        what = f"tool {strict[0]!r:.80} is strict" if form is None else "tools go with a form"
        raise ConfigError(
            f"{what}, and in this model's answers ({parts.name}) calls cannot be held to it; leave "
            "out strict and response_format, or make the answer a call by tool_choice, or send "
            "tool_choice none"
        )
    grammar = CallGrammar(
        tools=tools,
        arguments=[
            _strict_arguments(tool) if tool.function.strict else ANY_ARGUMENTS for tool in tools
        ],
        written=parts.written,
        special=parts.special,
        single=sent.parallel_tool_calls is False,
    )
    return grammar.beside_text() if form is None else grammar.beside_form(form)


def _tool_named(name: str, tools: Sequence[Tool]) -> Tool:
    """The first tool of this name, or `ConfigError`."""
    names = [tool.function.name for tool in tools]
    if name not in names:
        raise ConfigError(f"tool_choice names {name!r:.80}, and the tools are {names[:8]}")
    return tools[names.index(name)]


def _call(tool: Tool, place: str) -> Schema:
    """Schema of a call of this tool, which lies at a place of the whole schema."""
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.function.name},
            "arguments": _arguments(tool, f"{place}/properties/arguments"),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _arguments(tool: Tool, place: str) -> Schema:
    """Schema of a tool's arguments, which are an object whether it says so or not."""
    schema = tool.function.parameters or NO_ARGUMENTS
    kind = schema.get("type", "object")
    if kind != "object":
        raise ConfigError(
            f"tools has parameters of type {kind!r:.80} for {tool.function.name!r:.80}, and "
            "arguments are an object; put what they are into its properties"
        )
    return _moved({"type": "object", **schema}, place)


def _strict_arguments(tool: Tool) -> Schema:
    schema = _arguments(tool, "")
    check_end(schema)
    return schema


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to its own parts find them where it lies now."""
    if isinstance(schema, Mapping):
        return {
            key: f"#{place}{value[1:]}"
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in schema.items()
        }
    return [_moved(one, place) for one in schema] if isinstance(schema, list) else schema
