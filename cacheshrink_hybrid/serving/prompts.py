"""Prompts of what clients sent."""

from __future__ import annotations

import inspect

from transformers import PreTrainedTokenizerBase

from ..engine.prompts import Ids, PromptEncoder
from ..errors import ConfigError
from .schema import ChatRequest, CompletionRequest
from .tool_choice import offered_tools
from .wishes import conversation


def completion_prompts(sent: CompletionRequest) -> list[str | Ids]:
    """One or several.

    Raises:
        ConfigError: there is none.
    """
    given = sent.prompt
    if isinstance(given, str):
        return [given]
    if not given:
        raise ConfigError("the prompt is an empty list; send text or token ids")
    if isinstance(given[0], int):
        return [tuple(given)]
    return [one if isinstance(one, str) else tuple(one) for one in given]


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str | Ids) -> str:
    """What an echo of a prompt shows."""
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.decode(list(prompt), skip_special_tokens=True))


def chat_prompt(encoder: PromptEncoder, sent: ChatRequest) -> Ids:
    """Token ids of a conversation, with its tools, in the tokenizer's chat template.

    Raises:
        ConfigError: no template, or one that refuses this; variables that are no template's.
    """
    variables = sent.chat_template_kwargs or {}
    doors = encoder.tokenizer.apply_chat_template, encoder.chat
    own = {"self"}.union(*(inspect.signature(door).parameters for door in doors))
    refused = sorted(own.difference({"add_generation_prompt"}).intersection(variables))
    if refused:
        raise ConfigError(
            f"chat_template_kwargs has {', '.join(refused)}, and takes variables of the template "
            "itself; leave them out"
        )
    if tools := offered_tools(sent):
        variables = variables | {"tools": tools}
    return encoder.chat(conversation(sent.messages), **variables)
