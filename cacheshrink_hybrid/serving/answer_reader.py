"""An answer's text, read part by part as it comes: what is said, what is thought, which tools are
called."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_parsing import ResponseParser

from .answer_formats import CALLS, REASONING
from .journal import note

Tools = Sequence[Mapping[str, Any]]
Event = Mapping[str, Any]
"""Of `ResponseParser`: a part opens, goes on or closes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool.

    Attributes:
        arguments: as JSON.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a piece of an answer adds to one of its parts; the others are empty."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class AnswerReader(ABC):
    """Reads one answer.

    Attributes:
        chose_calls: an answer that calls tools does so by the model's own choice, and ends because
            of it.
    """

    chose_calls = True

    @abstractmethod
    def read(self, text: str) -> list[Part]:
        """What a piece of text adds, as far as it is certain."""

    @abstractmethod
    def end(self, *, whole: bool) -> list[Part]:
        """What is left when nothing more comes.

        Args:
            whole: the model has ended the answer, rather than a limit.
        """


class PlainReader(AnswerReader):
    """All is content."""

    def read(self, text: str) -> list[Part]:
        return _content(text)

    def end(self, *, whole: bool) -> list[Part]:
        return []


class PartsReader(AnswerReader):
    """Parts that the model marks itself. What looks like a call and cannot be read as one is
    content, as it stands.

    Args:
        description: of the parts, as `ResponseParser` reads it.
        prompt: behind which the answer comes.
        tools: which may be called, with schemas by which arguments get their types.
    """

    def __init__(self, description: Mapping[str, Any], prompt: str, tools: Tools) -> None:
        self._parser: ResponseParser | None = ResponseParser(
            dict(description), prefix=prompt, tools=[dict(tool) for tool in tools]
        )
        self._text = ""
        self._num_seen = self._num_told = 0
        """Characters up to the last piece of a part, and up to the last one that was told of."""

    def read(self, text: str) -> list[Part]:
        self._text += text
        parser = self._parser
        return self._rest() if parser is None else self._told(lambda: parser.feed(text))

    def end(self, *, whole: bool) -> list[Part]:
        parser = self._parser
        return [] if parser is None else self._told(lambda: parser.finalize()[1])

    def _told(self, parse: Callable[[], Iterable[Event]]) -> list[Part]:
        found: list[Part] = []
        try:
            for event in parse():
                if (part := self._part(event)) is not None:
                    found.append(part)
        except (ValueError, KeyError, TypeError) as error:  # of the format, which the model broke
            note("answer not of its format", level=logging.WARNING, why=str(error)[:200])
            self._parser = None
            found += self._rest()
        return found

    def _part(self, event: Event) -> Part | None:
        name, kind = event["field"], event["type"]
        if kind == "region_chunk":
            said = event["text"]
            self._num_seen = self._text.index(said, self._num_seen) + len(said)
            if name == CALLS:
                return None
            self._num_told = self._num_seen
            return Part(reasoning=said) if name in REASONING else Part(content=said)
        if kind == "region_close" and name == CALLS:
            value = event["value"]
            calls = value if isinstance(value, list) else [value]
            part = Part(calls=tuple(map(_tool_call, calls)))
            self._num_told = self._num_seen
            return part
        return None

    def _rest(self) -> list[Part]:
        """What was not told of yet, as content."""
        rest, self._num_told = self._text[self._num_told :], len(self._text)
        return _content(rest)


class ForcedReader(AnswerReader):
    """An answer whose form is that of calls, by grammar: JSON that says which tools are called.

    Args:
        name: of the only tool, whose arguments the answer is; None for a list of calls.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self.chose_calls = name is None
        self._text = ""

    def read(self, text: str) -> list[Part]:
        self._text += text
        return []

    def end(self, *, whole: bool) -> list[Part]:
        """The calls; an answer that was cut off before its end, by a limit or by a stop string, is
        content."""
        try:
            said = json.loads(self._text) if whole else None
        except ValueError:
            said = None
        if said is None:
            return _content(self._text)
        if self._name is not None:
            said = [{"name": self._name, "arguments": said}]
        return [Part(calls=tuple(_tool_call({"function": one}) for one in said))]


def _content(text: str) -> list[Part]:
    return [Part(content=text)] if text else []


def _tool_call(value: Any) -> ToolCall:
    """A call as parsed.

    Raises:
        ValueError: it is none.
    """
    function = value.get("function") if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise ValueError(f"a call without a function's name: {value!r:.100}")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name=name.strip(), arguments=arguments)
