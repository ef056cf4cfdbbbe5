"""Names under which attention modules of transformers take what others take under another name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

MASK_ARGUMENTS = ("attention_mask", "mask")
ENCODED_ARGUMENTS = ("key_value_states", "encoder_hidden_states")
"""Of what an encoder puts out."""
BIAS_ARGUMENT = "position_bias"
"""Of a bias of scores that an earlier layer has found. Modules that take it give it out as well,
between their output and the probabilities."""


def name_among(names: tuple[str, ...], arguments: Mapping[str, Any]) -> str | None:
    """The name under which something other than None is given; None if it is not."""
    return next((name for name in names if arguments.get(name) is not None), None)


def take_named(names: tuple[str, ...], arguments: dict[str, Any]) -> Any:
    """What is given under one of these names; the arguments are left without it."""
    found = [arguments.pop(name, None) for name in names]
    return next((value for value in found if value is not None), None)


def hands_on_bias(source: nn.Module) -> bool:
    """Whether attention modules take the bias of earlier ones, and give theirs out."""
    return BIAS_ARGUMENT in inspect.signature(source.forward).parameters
