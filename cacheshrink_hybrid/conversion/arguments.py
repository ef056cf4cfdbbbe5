"""Arguments of `convert_to_mla`: which name belongs to what, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.source_model import SOURCE_ARGUMENTS
from ..config import CompressionConfig
from ..errors import ConfigError, unknown_names
from ..methods import AUTO
from .options import ConversionOptions


def option_faults(options: ConversionOptions) -> Iterator[str]:
    """What is wrong with a precision, and with what can only be True or False."""
    dtype = options.dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, AUTO) and not (
        isinstance(found, torch.dtype) and found.is_floating_point
    ):
        yield (
            f"dtype={dtype!r} is no floating-point precision; give torch.float32, torch.bfloat16 "
            "or torch.float16, or leave it out for that of the model"
        )
    for name in ("trust_remote_code", "self_check", "inplace"):
        yield from flag_faults(name, getattr(options, name))


def flag_faults(name: str, value: object) -> Iterator[str]:
    """What is wrong with what can only be True or False."""
    if not isinstance(value, bool):
        yield f"{name}={value!r} is neither True nor False; give one of them"


def material_faults(
    texts: Sequence[str] | None, dataset: str | Path | None, options: ConversionOptions
) -> Iterator[str]:
    """Texts to calibrate on beside pairs, and names of fields without a file of these."""
    beside = {
        "calibration_texts": texts,
        "calibration_dataset": dataset,
        "calibration_dataset_subset": options.calibration_dataset_subset,
        "calibration_chats": options.calibration_chats,
    }
    given = [name for name, value in beside.items() if value is not None]
    if given and options.calibration_inputs is not None:
        yield (f"{', '.join(given)} and calibration_inputs both say what to calibrate on; drop one")
    of_file = isinstance(options.calibration_inputs, (str, Path))
    if options.pair_fields != ConversionOptions().pair_fields and not of_file:
        yield (
            f"pair_fields={options.pair_fields!r} are of a file of pairs; give its path as "
            "calibration_inputs, or drop them"
        )


def tokenizer_faults(tokenizer: object) -> Iterator[str]:
    if tokenizer is not None and not callable(tokenizer):
        yield (
            f"tokenizer={tokenizer!r} is no tokenizer; give what AutoTokenizer.from_pretrained "
            "returns, or leave it out"
        )


def sorted_out(
    named: Mapping[str, Any], own: Iterable[str]
) -> tuple[dict[str, Any], ConversionOptions, dict[str, Any]]:
    """(fields of a `CompressionConfig`, options, arguments of `from_pretrained`) among `named`.

    Args:
        own: parameters that are known as well.

    Raises:
        ConfigError: a name that is none of these.
    """
    records = (CompressionConfig, ConversionOptions)
    homes = [[field.name for field in fields(record)] for record in records]
    homes.append([name for name in SOURCE_ARGUMENTS if name not in homes[1]])
    known = dict.fromkeys([*own, *(name for home in homes for name in home)])
    fault = unknown_names(named, known)
    if fault is not None:
        raise ConfigError(f"convert_to_mla has no {fault}")
    settings, options, loading = (
        {name: value for name, value in named.items() if name in home} for home in homes
    )
    return settings, ConversionOptions(**options), loading


DEFAULT_IF_NONE = ("compression_ratio", "compression_method", "d_latent", "metric")
"""Settings for which None may be given, and stands for the default."""


def chosen_config(
    config: CompressionConfig | None, settings: Mapping[str, Any], *, use_calibration: bool
) -> CompressionConfig:
    """`config`, or the settings that were given by name; not both.

    Raises:
        ConfigError: both of them, settings that cannot be used, or that contradict
            `use_calibration`.
    """
    given = {n: v for n, v in settings.items() if v is not None or n not in DEFAULT_IF_NONE}
    if config is None:
        config = CompressionConfig(**(given if use_calibration else {"metric": "none", **given}))
    elif not isinstance(config, CompressionConfig):
        raise ConfigError(f"config is a {type(config).__name__}; give a CompressionConfig")
    elif given:
        raise ConfigError(
            f"{', '.join(given)} and config both give settings; put all of them into config"
        )
    if use_calibration != config.reads_text:
        remedy = (
            "it reads no text; give use_calibration=False with it"
            if use_calibration
            else "that metric reads text; give metric='none' with it, or leave metric out"
        )
        raise ConfigError(
            f"use_calibration={use_calibration} and metric={config.metric!r} contradict each "
            f"other: {remedy}"
        )
    return config
