"""What arguments name, loaded: models and texts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..calibration.text import load_texts
from ..checkpoint.load import load_mla_model
from ..checkpoint.load_faults import device_fault, is_converted_directory, loading
from ..checkpoint.source_model import gguf_location
from ..checkpoint.tokenizer_files import load_tokenizer
from ..config import CompressionConfig
from ..conversion.refusals import check_convertible
from ..errors import ConfigError, PlanError
from ..families import model_spec
from ..spec import ModelSpec


def kv_ratio(spec: ModelSpec, ratio: float) -> dict[str, Any]:
    """`compression_ratio` as a setting, for models that have keys and values."""
    return {"compression_ratio": ratio} if spec.attention_layers else {}


def read_texts(given: argparse.Namespace) -> list[str]:
    """The documents that --text or --dataset name.

    Raises:
        ConfigError: a file that cannot be read.
    """
    if given.text is None:
        return load_texts(
            None, given.dataset, given.subset, num_samples=given.samples, split="test"
        )
    documents: list[str] = []
    for path in given.text:
        if not path.is_file():
            raise ConfigError(f"{path} is no file; give the path of a text file")
        documents += load_texts(None, path)
    return load_texts(documents, "", num_samples=given.samples)


def load_any(
    name: str, *, device: str, dtype: str, trust_remote_code: bool, tokenizer: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A source or converted model in evaluation mode, with its tokenizer.

    Args:
        tokenizer: whether it is needed; where it is not, None may take its place.

    Raises:
        ConfigError: no such model or device, or a model saved without a tokenizer.
    """
    precision = "auto" if dtype == "auto" else getattr(torch, dtype)
    fault = device_fault(device)
    if fault is not None:
        raise ConfigError(f"device {fault}")
    if is_converted_directory(name):
        model, found = load_mla_model(
            name,
            device=device,
            dtype=None if precision == "auto" else precision,
            trust_remote_code=trust_remote_code,
        )
        if found is None and tokenizer:
            raise ConfigError(f"{name} was saved without a tokenizer; save it with one")
        return model, found
    with loading(name):
        place, where = gguf_location(name)
        options = {**where, "trust_remote_code": trust_remote_code}
        found = load_tokenizer(place, **options) if tokenizer else None
        model = AutoModelForCausalLM.from_pretrained(place, dtype=precision, **options)
    return model.to(device).eval(), found


def load_given(given: argparse.Namespace, name: str, *, tokenizer: bool = True):
    """`load_any` with the arguments of `flags.add_model_arguments`."""
    return load_any(
        name,
        device=given.device,
        dtype=given.dtype,
        trust_remote_code=given.trust_remote_code,
        tokenizer=tokenizer,
    )


def check_points(points: Mapping[str, CompressionConfig], spec: ModelSpec) -> None:
    """Refuse what no model of this spec can be converted to, before any work.

    Args:
        points: settings by what the command line calls them.

    Raises:
        PlanError: all that cannot be.
        UnsupportedModelError, ConfigError: nothing to compress.
    """
    faults = []
    for label, config in points.items():
        try:
            check_convertible(spec, config)
        except PlanError as error:
            faults.append(f"{label}: {error}")
    if faults:
        raise PlanError("; ".join(faults))


def source_spec(name: str | Path, *, trust_remote_code: bool = False) -> ModelSpec:
    """What a source model caches, from its config alone.

    Raises:
        ConfigError: no such model.
        UnsupportedModelError: a family that is not supported.
    """
    with loading(name):
        place, where = gguf_location(name)
        return model_spec(
            AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code, **where)
        )
