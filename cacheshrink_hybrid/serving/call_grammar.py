"""Answers that may call tools, as grammars: calls in the model's own words, or an answer of a form.

The grammars are in the Lark of llguidance, which puts JSON schemas and special tokens among its
terminals. Each schema stands by itself, so that references into it hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.grammar import JSON_OPTIONS, TERSE_JSON
from .answer_formats import ENDS_THINKING, THINK, WrittenCalls
from .schema import Tool

ANYTHING = r"/(.|\n)*/"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallGrammar:
    """Which answers there are to a chat with tools.

    Attributes:
        tools: that may be called.
        arguments: schema of each one's arguments.
        written: how the model writes calls.
        special: ids of special tokens, by their texts.
        single: one call at most.
    """

    tools: Sequence[Tool]
    arguments: Sequence[Mapping[str, Any]]
    written: WrittenCalls
    special: Mapping[str, int]
    single: bool

    def beside_text(self) -> str:
        """Any text, behind which calls may come; nothing in it is a call of another form."""
        if self.written.alone:
            # As soon as something else has been said, nothing more is a call.
            lines = ["start: OTHER | calls", r"OTHER: /([^ \n\{](.|\n)*)?/"]
            return self._grammar(lines)
        mark = self.written.mark
        lines = [f"TEXT: {ANYTHING}"]
        thoughts = [f"<[{self.special[x]}]>" for x in (THINK, ENDS_THINKING) if x in self.special]
        before = ""
        if thoughts:
            lines.append(f"thought: TEXT ({' | '.join(thoughts)})")
            before = "thought* "
        if mark in self.special:
            lines.append(f"start: {before}(TEXT | TEXT calls)")
            return self._grammar(lines)
        # Lazy: the text is over with the first mark, which no answer has without a call.
        lines.append(f"start: {before}(TEXT | lead calls)")
        lines.append(rf"lead[lazy]: /(.|\n)*{_regex_of(mark)}/")
        return self._grammar(lines, led=True)

    def beside_form(self, form: str) -> str:
        """An answer of this form, a terminal or rule of Lark, or calls alone."""
        return self._grammar(["start: answer | calls", f"answer: {form}"])

    def _grammar(self, lines: list[str], *, led: bool = False) -> str:
        """With rules of calls.

        Args:
            led: the mark of the first call stands before them already.
        """
        written = self.written
        count = range(len(self.tools))
        first, later = ([f"{which}_{i}" for i in count] for which in ("first", "later"))
        single = self.single or written.alone
        more = "" if single else f" ({' | '.join(later)})*"
        calls = f"({' | '.join(first)}){more} {self._literal(written.closes)}"
        rules = [f"calls: {calls}"]
        for i, (tool, schema) in enumerate(zip(self.tools, self.arguments, strict=True)):
            begin, behind = written.before(tool.function.name), self._literal(written.behind)
            opening = f"{written.opens}{begin}"
            if led:
                opening = opening.partition(written.mark)[2]
            rest = f"{json_terminal(schema, TERSE_JSON)} {behind}"
            rules.append(f"first_{i}: {self._literal(opening)} {rest}")
            if not single:
                next_one = self._literal(f"{written.between}{begin}")
                rules.append(f"later_{i}: {next_one} {rest}")
        return "\n".join(["%llguidance {}", *lines, *rules]) + "\n"

    def _literal(self, text: str) -> str:
        """A text as terminals; special tokens by their ids."""
        known = sorted(self.special, key=len, reverse=True)
        pattern = "|".join(map(re.escape, known))
        pieces = re.split(f"({pattern})", text) if known else [text]
        return " ".join(
            f"<[{self.special[piece]}]>" if piece in self.special else json.dumps(piece)
            for piece in pieces
            if piece
        )


def json_terminal(schema: Mapping[str, Any], options: Mapping[str, Any] = JSON_OPTIONS) -> str:
    """JSON of a schema.

    Args:
        options: how it is written, as `JSON_OPTIONS`.
    """
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def json_grammar(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Of answers that are JSON of a schema."""
    return f"%llguidance {{}}\nstart: {json_terminal(schema, options)}\n"


def regex_terminal(regex: str) -> str:
    """Texts of a regular expression."""
    ends = {"/": r"\/", "\n": r"\n"}
    inside = re.sub(r"\\.|/|\n", lambda found: ends.get(found[0], found[0]), regex, flags=re.DOTALL)
    return f"/{inside}/"


def _regex_of(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
