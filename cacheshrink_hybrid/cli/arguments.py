"""What arguments name, loaded: models and texts."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..calibrate.text import load_texts
from ..checkpoint import load_mla_model
from ..errors import ConfigError
from ..loading import device_fault, is_converted_directory, loading
from ..source_model import gguf_location
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
    name: str, *, device: str, dtype: str, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A source or converted model in evaluation mode, with its tokenizer.

    Raises:
        ConfigError: no such model or device, or a model saved without a tokenizer.
    """
    precision = "auto" if dtype == "auto" else getattr(torch, dtype)
    fault = device_fault(device)
    if fault is not None:
        raise ConfigError(f"device {fault}")
    if is_converted_directory(name):
        model, tokenizer = load_mla_model(
            name,
            device=device,
            dtype=None if precision == "auto" else precision,
            trust_remote_code=trust_remote_code,
        )
        if tokenizer is None:
            raise ConfigError(f"{name} was saved without a tokenizer; save it with one")
        return model, tokenizer
    with loading(name):
        place, where = gguf_location(name)
        options = {**where, "trust_remote_code": trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=precision, **options)
    return model.to(device).eval(), tokenizer


def load_given(given: argparse.Namespace, name: str):
    """`load_any` with the arguments of `flags.add_model_arguments`."""
    return load_any(
        name,
        device=given.device,
        dtype=given.dtype,
        trust_remote_code=given.trust_remote_code,
    )
