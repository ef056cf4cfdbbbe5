"""What a model reads in one pass of a calibration: a text, or a text and what an encoder reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from transformers import PreTrainedModel

from .placement import input_device


@dataclass(frozen=True, eq=False, slots=True)
class PairedText:
    """A text of the decoder of an encoder-decoder model, with what its encoder reads.

    Attributes:
        ids: token ids that the decoder reads, (1, T); each is to predict the next one.
        encoder: arguments of the model's forward for its encoder, by name, with one row each.
    """

    ids: Tensor
    encoder: Mapping[str, Tensor]


Text: TypeAlias = Tensor | PairedText
"""Token ids (1, T) of a model that reads nothing else; or a pair."""


def ids_of(text: Text) -> Tensor:
    """The token ids (1, T) that are read and predicted."""
    return text.ids if isinstance(text, PairedText) else text


def arguments_of(text: Text, model: PreTrainedModel) -> dict[str, Any]:
    """What a model's forward is called with, on the device of its inputs and in its precision."""
    device = input_device(model)
    if not isinstance(text, PairedText):
        return {"input_ids": text.to(device)}
    given = {
        name: x.to(device, model.dtype) if x.is_floating_point() else x.to(device)
        for name, x in text.encoder.items()
    }
    return {**given, "decoder_input_ids": text.ids.to(device)}
