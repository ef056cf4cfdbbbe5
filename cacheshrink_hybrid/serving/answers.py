"""What clients get: OpenAI's objects, as JSON.

A `Writer` writes the answers to one request: whole, or a chunk for each output of the engine.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine import LogProbability, RequestOutput
from ..engine.token_bytes import TokenBytes
from .answer_reader import AnswerReader, Part, ToolCall

Json = dict[str, Any]
SAID = ("content", "reasoning")
"""What parts of answers have as text."""


@dataclass
class Usage:
    """Tokens of one answer, counted as outputs come; those that are cached were taken from kept
    prefixes, and belong to the prompt."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def json(self) -> Json:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Writer(ABC):
    """Answers to one request.

    Args:
        model: the served name.
        token_bytes: of the model's tokenizer.
        prefix: of the answer's id.
        kind: of the answer's object; chunks of a stream may have another.

    Attributes:
        id: of the answer.
        usage: of what was counted so far.
    """

    def __init__(self, model: str, token_bytes: TokenBytes, *, prefix: str, kind: str) -> None:
        self.token_bytes = token_bytes
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.usage = Usage()
        self._model, self._kind = model, kind
        self._created = int(time.time())
        self._num_shown: dict[int, int] = {}
        """Characters that the client has, by the number of the choice."""

    @abstractmethod
    def choice(self, number: int, output: RequestOutput) -> Json:
        """One of the choices of a whole answer."""

    @abstractmethod
    def chunks(self, number: int, output: RequestOutput, *, first: bool) -> list[Json]:
        """What a stream shows of an output.

        Args:
            number: of the choice.
            first: whether it is the choice's first.
        """

    def whole(self, choices: Sequence[Json]) -> Json:
        """The answer to a request that does not stream."""
        return self._frame(self._kind, choices) | {"usage": self.usage.json()}

    def last_chunk(self) -> Json:
        """Of a stream: the usage alone."""
        return self._chunk([]) | {"usage": self.usage.json()}

    def count(self, output: RequestOutput) -> None:
        """Add an output's new tokens to the usage, and those of its prompt with the first."""
        if output.index == 0 and len(output.new_token_ids) == len(output.token_ids):
            self.usage.prompt_tokens += len(output.prompt_ids)
            self.usage.cached_tokens += output.num_cached_tokens
        self.usage.completion_tokens += self._num_told(output)

    def _num_told(self, output: RequestOutput) -> int:
        """New tokens that the client gets."""
        return len(output.new_token_ids)

    def _new_text(self, number: int, output: RequestOutput) -> str:
        begin = self._num_shown.get(number, 0)
        text = output.text
        self._num_shown[number] = len(text)
        return text[begin:]

    def _chunk(self, choices: Sequence[Json]) -> Json:
        return self._frame(self._kind, choices)

    def _frame(self, kind: str, choices: Sequence[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": list(choices),
        }


class ChatWriter(Writer):
    """Answers of `/v1/chat/completions`.

    Args:
        new_reader: makes what reads the parts of one choice.
        most_calls: of tools, that a choice tells of.
    """

    def __init__(
        self,
        model: str,
        token_bytes: TokenBytes,
        new_reader: Callable[[], AnswerReader],
        most_calls: int | None = None,
    ) -> None:
        super().__init__(model, token_bytes, prefix="chatcmpl", kind="chat.completion")
        self._new_reader, self._most_calls = new_reader, most_calls
        self._readers: dict[int, AnswerReader] = {}
        self._calls: dict[int, list[Json]] = {}
        """Of tools, so far, by the number of the choice."""

    def choice(self, number: int, output: RequestOutput) -> Json:
        parts = self._parts(number, output)
        content, thought = ("".join(getattr(part, name) for part in parts) for name in SAID)
        calls = self._calls.get(number)
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        return self._ended(number, output, output.logprobs) | {"message": message}

    def chunks(self, number: int, output: RequestOutput, *, first: bool) -> list[Json]:
        """Who speaks, what is new, and at the end why nothing more comes."""
        found = []
        if first:
            found.append(self._part(number, {"role": "assistant", "content": ""}, None))
        told = self._deltas(number, output)
        logprobs = _new(output)
        if logprobs and not told:
            told = [{"content": ""}]
        for place, delta in enumerate(told):
            found.append(self._part(number, delta, None if place else logprobs))
        if output.finished:
            found.append(self._ended(number, output, None) | {"delta": {}})
        return [self._chunk([choice]) for choice in found]

    def _deltas(self, number: int, output: RequestOutput) -> list[Json]:
        """What an output adds to the message."""
        before = len(self._calls.get(number, ()))
        parts = self._parts(number, output)
        said = [
            {"reasoning_content" if name == "reasoning" else name: text}
            for part in parts
            for name in SAID
            if (text := getattr(part, name))
        ]
        calls = self._calls.get(number, [])[before:]
        return [
            *said,
            *({"tool_calls": [{"index": before + i} | calls[i]]} for i in range(len(calls))),
        ]

    def _parts(self, number: int, output: RequestOutput) -> list[Part]:
        """What an output adds, its calls noted."""
        if number not in self._readers:
            self._readers[number] = self._new_reader()
        reader = self._readers[number]
        parts = reader.read(self._new_text(number, output))
        if output.finished:
            parts += reader.end(whole=output.finish_reason == "stop")
        calls = self._calls.setdefault(number, [])
        calls += [_call(call) for part in parts for call in part.calls]
        if self._most_calls is not None:
            del calls[self._most_calls :]
        return parts

    def _chunk(self, choices: Sequence[Json]) -> Json:
        return self._frame("chat.completion.chunk", choices)

    def _part(self, number: int, delta: Json, logprobs: Any) -> Json:
        return {
            "index": number,
            "delta": delta,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": None,
        }

    def _ended(self, number: int, output: RequestOutput, logprobs: Any) -> Json:
        reason = output.finish_reason
        if reason == "stop" and self._calls[number] and self._readers[number].chose_calls:
            reason = "tool_calls"
        return {
            "index": number,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": reason,
        }

    def _logprobs(self, told: Sequence[LogProbability] | None) -> Json | None:
        if told is None:
            return None
        return {"content": [self._told(one) for one in told], "refusal": None}

    def _told(self, one: LogProbability) -> Json:
        return self._token(one.token_id, one.value) | {
            "top_logprobs": [self._token(token, value) for token, value in one.top]
        }

    def _token(self, token: int, value: float) -> Json:
        written = self.token_bytes(token)
        return {
            "token": written.decode(errors="replace"),
            "logprob": value,
            "bytes": list(written),
        }


class CompletionWriter(Writer):
    """Answers of `/v1/completions`.

    Args:
        echoes: what each choice begins with, by its number; empty where prompts are not echoed.
        echo_alone: choices have nothing else.
    """

    def __init__(
        self,
        model: str,
        token_bytes: TokenBytes,
        echoes: Sequence[str],
        *,
        echo_alone: bool = False,
    ) -> None:
        super().__init__(model, token_bytes, prefix="cmpl", kind="text_completion")
        self._echoes, self._echo_alone = echoes, echo_alone
        self._offsets: dict[int, int] = {}
        """Characters that the tokens told of so far begin, by the number of the choice."""

    def choice(self, number: int, output: RequestOutput) -> Json:
        return self._written(number, output, output.text, output.logprobs, first=True)

    def chunks(self, number: int, output: RequestOutput, *, first: bool) -> list[Json]:
        text, logprobs = self._new_text(number, output), _new(output)
        if not (text or logprobs or first or output.finished):
            return []
        return [self._chunk([self._written(number, output, text, logprobs, first=first)])]

    def _num_told(self, output: RequestOutput) -> int:
        return 0 if self._echo_alone else super()._num_told(output)

    def _written(
        self,
        number: int,
        output: RequestOutput,
        text: str,
        logprobs: Sequence[LogProbability] | None,
        *,
        first: bool,
    ) -> Json:
        told: list[LogProbability | None] = list(logprobs or ())
        if self._echo_alone:
            text, told = "", []
        if first and self._echoes:
            text = self._echoes[number] + text
            told = [*(output.prompt_logprobs or ()), *told]
        return {
            "index": number,
            "text": text,
            "logprobs": None if logprobs is None else self._logprobs(number, output, told),
            "finish_reason": "length" if self._echo_alone else output.finish_reason,
        }

    def _logprobs(
        self, number: int, output: RequestOutput, told: Sequence[LogProbability | None]
    ) -> Json:
        ids = [output.prompt_ids[0] if one is None else one.token_id for one in told]
        offsets = []
        for token in ids:
            written = b"" if self.token_bytes.is_special(token) else self.token_bytes(token)
            before = self._offsets.get(number, 0)
            # A token that goes on with a character is where that one is.
            offsets.append(before - (_continues(written[:1]) and before > 0))
            self._offsets[number] = before + sum(not _continues(bytes([x])) for x in written)
        return {
            "tokens": list(map(self.token_bytes.name, ids)),
            "token_logprobs": [None if one is None else one.value for one in told],
            "top_logprobs": [None if one is None else self._top(one) for one in told],
            "text_offset": offsets,
        }

    def _top(self, one: LogProbability) -> dict[str, float]:
        """The most likely tokens and the one that came, by what they write."""
        told = [*one.top, (one.token_id, one.value)]
        return {self.token_bytes.name(token): value for token, value in reversed(told)}


def _call(call: ToolCall) -> Json:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _continues(byte: bytes) -> bool:
    """Whether a byte of UTF-8 belongs to the character before it."""
    return byte != b"" and byte[0] & 0xC0 == 0x80


def _new(output: RequestOutput) -> Sequence[LogProbability] | None:
    """Log-probabilities of an output's new tokens."""
    if output.logprobs is None:
        return None
    return output.logprobs[len(output.token_ids) - len(output.new_token_ids) :]
