"""Prompts of what clients sent."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from ..chat_template import check_chat_template, template_reads
from ..engine.prompts import Ids, PromptEncoder
from ..errors import ConfigError
from .conversation import conversation
from .schema import ChatRequest, CompletionRequest
from .tool_choice import is_forced, offered_tools

TOOLS = "tools"


def completion_prompts(sent: CompletionRequest) -> list[str | Ids]:
    """One or several.

    Raises:
        ConfigError: there is none.
    """
    given = sent.prompt
    if isinstance(given, str):
        return [given]
    if not given:
        raise ConfigError("prompt is an empty list; send text or token ids")
    if isinstance(given[0], int):
        return [tuple(given)]
    return [one if isinstance(one, str) else tuple(one) for one in given]


def prompt_ids(encoder: PromptEncoder, prompts: Sequence[str | Ids]) -> list[Ids]:
    """Token ids of prompts.

    Raises:
        ConfigError: a text that cannot be written in UTF-8.
        PromptLengthError: one that is too long.
    """
    return [encoder.text(one) if isinstance(one, str) else one for one in prompts]


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str | Ids) -> str:
    """What an echo of a prompt shows."""
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.decode(list(prompt), skip_special_tokens=True))


def chat_prompt(encoder: PromptEncoder, sent: ChatRequest) -> Ids:
    """Token ids of a conversation, with its tools, in the tokenizer's chat template.

    Raises:
        ConfigError: no template, one that refuses this, or one that does not read what was sent;
            variables that are no template's.
    """
    tokenizer = encoder.tokenizer
    check_chat_template(tokenizer)
    variables = dict(sent.chat_template_kwargs or {})
    _check_variables(variables, encoder)
    if tools := offered_tools(sent):
        if not (is_forced(sent) or template_reads(tokenizer, TOOLS)):
            raise ConfigError(
                f"{TOOLS} are sent, and the model's chat template does not show them; leave them "
                "out, make the answer a call by tool_choice, or start the server with a "
                "--chat-template that shows them"
            )
        variables[TOOLS] = tools
    return encoder.chat(conversation(sent.messages, tokenizer), **variables)


def _check_variables(variables: Iterable[str], encoder: PromptEncoder) -> None:
    doors = encoder.tokenizer.apply_chat_template, encoder.chat
    own = {"self"}.union(*(inspect.signature(door).parameters for door in doors))
    refused = sorted(own.difference({"add_generation_prompt"}).intersection(variables))
    if refused:
        raise ConfigError(
            f"chat_template_kwargs has {', '.join(refused)}, and takes variables of the template "
            "itself; leave them out"
        )
    unread = sorted(name for name in variables if not template_reads(encoder.tokenizer, name))
    if unread:
        raise ConfigError(
            f"chat_template_kwargs has {', '.join(unread):.200}, which the model's chat template "
            "does not read; leave them out"
        )
