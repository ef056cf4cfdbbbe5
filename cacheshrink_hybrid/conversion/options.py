"""How a conversion goes about it, beside what it makes; known without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    import torch

    from ..chat_template import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """How a conversion goes about it, which leaves no trace in its result.

    Attributes:
        device, dtype: where and in what precision to load and convert a name or a path.
        trust_remote_code: passed to `from_pretrained`; code from the Hub runs only if True.
        calibration_dataset_subset: configuration of a data set on the Hub.
        calibration_chats: conversations to calibrate a chat model on, lists of messages with `role`
            and `content`, or a JSON file of them; the tokenizer's chat template turns them into
            text. Where texts are given as well, either gives half of the samples, and more where
            the other has fewer.
        calibration_inputs: pairs to calibrate an encoder-decoder model on, in the place of texts:
            for each a dictionary of arguments of the model's forward, with one row. What the
            encoder reads (`input_ids`, `input_features`), without padding, and `labels`, the tokens
            that the decoder is to give, or `decoder_input_ids`. Pairs of texts may come from a
            file: a JSON list of objects, or with the ending .jsonl one in each line.
        pair_fields: names that such a file gives to what the encoder reads and to what the decoder
            is to give.
        self_check: before anything else, compare every layer that is to be replaced, rebuilt at
            full rank, with the source's on a few tokens.
        inplace: rewrite a model object itself. False leaves it alone and converts a copy, which
            takes the memory of its weights once more.
    """

    device: str | torch.device | None = None
    dtype: torch.dtype | str | None = None
    trust_remote_code: bool = False
    calibration_dataset_subset: str | None = None
    calibration_chats: Sequence[Conversation] | str | Path | None = None
    calibration_inputs: Sequence[Mapping[str, Any]] | str | Path | None = None
    pair_fields: tuple[str, ...] = ("input", "target")
    self_check: bool = True
    inplace: bool = True
