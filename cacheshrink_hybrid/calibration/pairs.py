"""Pairs to calibrate an encoder-decoder model on: an encoder's input, and the decoder's text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..cache_argument import CACHE_ARGUMENTS
from ..errors import CalibrationError
from ..next_token import IGNORED
from ..paired_text import PairedText
from .amount import positions_of
from .pair_files import WrittenPair
from .sequences import CalibrationSequences
from .text import evenly_spread

OF_DECODER = ("labels", "decoder_input_ids")
"""Names of a decoder's text: the tokens that it is to give, or those that it reads."""
NOT_OF_ENCODER = (*CACHE_ARGUMENTS, "encoder_outputs", "use_cache", "return_dict", "logits_to_keep")
EXAMPLE = "[{'input_ids': ..., 'labels': ...}, ...]"


def check_pairs(pairs: object) -> None:
    """Raise `CalibrationError` for what is no list of dictionaries of tensors."""
    if isinstance(pairs, (Mapping, str)) or not isinstance(pairs, Sequence) or not pairs:
        fault = "is a" if pairs else "is an empty"
        raise CalibrationError(
            f"calibration_inputs {fault} {type(pairs).__name__}; give "
            f"a list of dictionaries of the model's arguments, one pair in each: {EXAMPLE}"
        )
    for number, pair in enumerate(pairs):
        if not isinstance(pair, Mapping):
            raise CalibrationError(
                f"calibration_inputs[{number}] is a {type(pair).__name__}; give a dictionary of "
                f"the model's arguments: {EXAMPLE}"
            )


def paired_sequences(
    model: PreTrainedModel, pairs: Sequence[Mapping[str, Any]], num_samples: int | None = None
) -> CalibrationSequences:
    """Pairs as a model reads them, as many as `num_samples`, evenly spread.

    Args:
        pairs: arguments of the model's forward by name, one row in each: what its encoder reads,
            without padding, and `labels`, or `decoder_input_ids`.

    Raises:
        CalibrationError: for other arguments, or several rows.
    """
    check_pairs(pairs)
    chosen = evenly_spread(list(enumerate(pairs)), num_samples)
    return CalibrationSequences(
        [_pair(model, f"calibration_inputs[{number}]", pair) for number, pair in chosen]
    )


def tokenized(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[WrittenPair],
    max_length: int,
) -> list[dict[str, Tensor]]:
    """Pairs as arguments of a model's forward, `input_ids` and `labels`, (1, T) each, both cut to
    at most `max_length` tokens, the decoder's first one included.

    Raises:
        CalibrationError: the encoder reads something else than text.
    """
    if model.main_input_name != "input_ids":
        raise CalibrationError(
            f"the encoder of a {model.config.model_type} model reads {model.main_input_name}, and "
            "a file has pairs of texts; call convert_to_mla with calibration_inputs=[{...}, ...]"
        )
    own = {"truncation": True, "max_length": max_length}
    asked = {**own, "max_length": max_length - 1}
    return [
        {
            "input_ids": _row(tokenizer(source, **own)),
            "labels": _row(tokenizer(text_target=target, **asked)),
        }
        for source, target in pairs
    ]


def _row(encoded: Mapping[str, Any]) -> Tensor:
    return torch.tensor([encoded["input_ids"]], dtype=torch.long)


def _pair(model: PreTrainedModel, name: str, pair: Mapping[str, Any]) -> PairedText:
    ids = _decoder_ids(model, name, pair)
    known = [
        argument
        for argument in inspect.signature(model.forward).parameters
        if not argument.startswith(("decoder_", "output_", "kwargs", "labels"))
        and argument not in NOT_OF_ENCODER
    ]
    encoder = {argument: pair[argument] for argument in pair if argument not in OF_DECODER}
    unknown = [argument for argument in encoder if argument not in known]
    main = model.main_input_name
    if unknown or main not in encoder:
        fault = f"has {', '.join(unknown)}" if unknown else f"lacks {main}"
        raise CalibrationError(
            f"{name} {fault}; a {type(model).__name__} takes {main} and labels (or "
            f"decoder_input_ids) there, and knows {', '.join(known)}"
        )
    encoder = {argument: torch.as_tensor(x) for argument, x in encoder.items()}
    for argument, x in encoder.items():
        if x.ndim < 2 or len(x) != 1:
            raise CalibrationError(
                f"{name}[{argument!r}] has shape {tuple(x.shape)}; give one row, (1, ...)"
            )
    mask = encoder.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise CalibrationError(
            f"{name}['attention_mask'] hides some of what the encoder reads, which would be "
            "calibrated on all the same; give each pair without padding"
        )
    return PairedText(ids, encoder)


def _decoder_ids(model: PreTrainedModel, name: str, pair: Mapping[str, Any]) -> Tensor:
    """Token ids (1, T) that the decoder reads; the last one is only predicted."""
    given = [argument for argument in OF_DECODER if pair.get(argument) is not None]
    if len(given) != 1:
        raise CalibrationError(
            f"{name} has {' and '.join(given) or 'no text of the decoder'}; give labels, the "
            "tokens that it is to give, or decoder_input_ids"
        )
    ids = torch.as_tensor(pair[given[0]]).long()
    if given == ["labels"]:
        first: Any = getattr(model.config, "decoder_start_token_id", None)
        if first is None:
            raise CalibrationError(
                f"{name}: the model's config says no decoder_start_token_id, with which labels "
                "begin; give decoder_input_ids"
            )
        if ids.ndim == 2 and len(ids) == 1:
            ids = torch.cat([torch.tensor([first]), ids[ids != IGNORED]])[None]
    positions = positions_of(model.config)
    if ids.ndim != 2 or len(ids) != 1 or not 2 <= ids.shape[1] <= (positions or ids.shape[1]):
        most = "" if positions is None else f", of at most {positions} tokens"
        raise CalibrationError(
            f"{name}[{given[0]!r}] makes {' x '.join(map(str, ids.shape))} tokens for the decoder; "
            f"give one row, (1, T){most}, that leaves something to predict"
        )
    return ids
