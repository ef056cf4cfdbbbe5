"""What clients may send: OpenAI's requests, and the fields that vLLM adds to them.

A field that is not here is refused by name, and so is one whose value would change nothing here
but should.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .neutral_fields import CHAT_NEUTRAL, COMPLETION_NEUTRAL, Neutral, without_neutral

MAX_ANSWERS = 128
"""Most `n`, as in OpenAI's API."""
MAX_LISTED = 256
"""Most stop strings and the like, each of which is looked for at every token."""


MOST_TOLD = 8
"""Faults of a body that are told at once. A body has room for a million, and each takes time."""

Item = TypeVar("Item")
Listed = Annotated[list[Item], Field(fail_fast=True)]
"""A list of which the first wrong item is told."""


class Sent(BaseModel):
    """Part of a body; None is the same as leaving a field out, whatever the field."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_none(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        told = {name: value for name, value in given.items() if value is not None}
        if cls.model_config.get("extra") != "forbid":
            return told
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [name for name in told if name not in fields and name not in cls.model_fields]
        for name in unknown[MOST_TOLD:]:
            del told[name]
        return told


class StreamOptions(Sent):
    """What a stream tells beside its text.

    Attributes:
        include_usage: a last chunk with the numbers of tokens.
        include_obfuscation: chunks have no padding that hides their lengths.
        continuous_usage_stats: chunks before the last one tell no numbers.
    """

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: Literal[False] | None = None


class JsonSchema(Sent):
    """A schema with a name.

    Attributes:
        strict: answers are of the schema whatever this says.
    """

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Sent):
    """The form of an answer, in OpenAI's words."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Sent):
    """The form of an answer, in vLLM's words: one of these.

    Attributes:
        json_: a schema, as an object or as its JSON.
        regex: that the whole answer is of.
        choice: texts, one of which is the answer.
        grammar: that the whole answer is of, in the Lark of llguidance.
        json_object: any object of JSON.
        disable_any_whitespace: JSON has none between its parts.
    """

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Listed[Annotated[str, Field(min_length=1)]] | None = Field(
        default=None, min_length=1, max_length=MAX_LISTED
    )
    grammar: str | None = None
    json_object: Literal[True] | None = None
    disable_any_whitespace: bool | None = None

    @field_validator("json_", mode="before")
    @classmethod
    def _is_object(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is text that is no JSON ({error}); send a schema") from error

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        forms = ("json_", "regex", "choice", "grammar", "json_object")
        given = [name.strip("_") for name in forms if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"has {' and '.join(given) or 'no form'}; send one of json, regex, choice, grammar "
                "and json_object"
            )
        if self.disable_any_whitespace and given[0] not in ("json", "json_object"):
            raise ValueError(f"has disable_any_whitespace with {given[0]}, which is no JSON")
        return self


class SamplingFields(Sent):
    """Wishes that both routes take; see `SamplingParams` for what they do.

    Attributes:
        model: the served name; None for whatever is served.
        user, metadata, safety_identifier, prompt_cache_key: the client's own; they change nothing.
        store: nothing is ever stored here.
        service_tier: there is one.
    """

    neutral: ClassVar[Neutral] = {}
    """Fields beside these, with the values at which they change nothing."""

    model: str | None = None
    n: int | None = Field(default=None, le=MAX_ANSWERS)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | Annotated[Listed[str], Field(max_length=MAX_LISTED)] | None = None
    stop_token_ids: Listed[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    allowed_token_ids: Listed[int] | None = Field(default=None, min_length=1)
    bad_words: Listed[str] | None = Field(default=None, max_length=MAX_LISTED)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        return without_neutral(given, cls.neutral)


class CompletionRequest(SamplingFields):
    """Body of `/v1/completions`.

    Attributes:
        prompt: one or several, as text or as token ids.
        max_tokens: most tokens of an answer, 16 unless given; 0 for the echo alone.
        echo: begin with the prompt.
        logprobs: of each token, with so many of the most likely ones.
        best_of: the same as `n`; nothing is thrown away.
    """

    neutral = COMPLETION_NEUTRAL

    prompt: str | Listed[str] | Listed[int] | Listed[Listed[int]]
    max_tokens: int | None = None
    echo: bool | None = None
    logprobs: int | None = Field(default=None, le=20)
    best_of: int | None = None


class TextPart(Sent):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(Sent):
    """One message; fields beside these go to the chat template, which must read them."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(min_length=1)
    content: str | Listed[TextPart] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _is_text(cls, given: Any) -> Any:
        for part in given if isinstance(given, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise ValueError(
                    f"has a part of type {kind!r:.80}, and text is all that is read here; "
                    "leave it out"
                )
        return given


class Function(Sent):
    """What a tool is; fields beside these go to the chat template as they are.

    Attributes:
        parameters: JSON schema of its arguments, an object's.
        strict: every call of it is of this schema, also where the model calls it by itself.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    name: str = Field(min_length=1)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Sent):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["function"]
    function: Function


class FunctionName(Sent):
    """Of a tool."""

    name: str


class NamedTool(Sent):
    """The one tool that has to be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Sent):
    """Some of the tools, as if they were all."""

    mode: Literal["auto", "required"]
    tools: Listed[NamedTool] = Field(min_length=1)


class ToolsChoice(Sent):
    """Which of the tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[NamedTool | ToolsChoice, Field(discriminator="type")]


class ChatRequest(SamplingFields):
    """Body of `/v1/chat/completions`.

    Attributes:
        messages: the conversation.
        max_completion_tokens, max_tokens: most tokens of an answer; None for as many as there is
            room for.
        logprobs, top_logprobs: of each token, and of so many of the most likely ones.
        tools: handed to the chat template; calls of them are read from the answer.
        tool_choice: `none` keeps the tools from the template, `required` and a tool by name make
            the answer calls of them; `allowed_tools` leaves out the others.
        parallel_tool_calls: false for the first call alone.
        chat_template_kwargs: more variables of the template.
        modalities: answers are text.
    """

    neutral = CHAT_NEUTRAL

    messages: Listed[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Listed[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None
