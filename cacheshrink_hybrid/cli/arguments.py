"""Arguments and loading that several programs share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..calibrate.text import PYTHON_DOCS, load_texts
from ..checkpoint import load_mla_model
from ..checkpoint_files import PLAN_NAME
from ..errors import ConfigError
from ..source_model import gguf_location
from ..spec import ModelSpec

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_model_arguments(
    parser: argparse.ArgumentParser, *, several: bool = False, optional: bool = False
) -> None:
    """`model` (or `models`), --device, --dtype, --trust-remote-code."""
    parser.add_argument(
        "models" if several else "model",
        nargs="+" if several else "?" if optional else None,
        metavar="MODEL",
        help="directory of a source or converted model, a GGUF file, or a name on the Hub",
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="precision to load in")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run modeling code from the Hub"
    )


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """--text, --dataset, --subset, --samples."""
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        metavar="FILE",
        help="text file; documents are separated by lines <|endoftext|>. May be repeated",
    )
    parser.add_argument(
        "--dataset",
        default=PYTHON_DOCS,
        help=f"data set to use without --text (default: {PYTHON_DOCS}, held-out modules)",
    )
    parser.add_argument("--subset", default=None, help="configuration of the data set")
    parser.add_argument("--samples", type=int, default=None, help="documents to use, evenly spread")


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
    """A source or converted model in evaluation mode, with its tokenizer."""
    precision = "auto" if dtype == "auto" else getattr(torch, dtype)
    if (Path(name) / PLAN_NAME).is_file():
        model, tokenizer = load_mla_model(
            name, device=device, dtype=None if precision == "auto" else precision
        )
        if tokenizer is None:
            raise ConfigError(f"{name} was saved without a tokenizer; save it with one")
        return model, tokenizer
    try:
        place, where = gguf_location(name)
        options = {**where, "trust_remote_code": trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=precision, **options)
    except OSError as error:
        raise ConfigError(f"model {name!r} cannot be loaded: {error}") from error
    return model.to(device).eval(), tokenizer


def load_given(given: argparse.Namespace, name: str):
    """`load_any` with the arguments of `add_model_arguments`."""
    return load_any(
        name,
        device=given.device,
        dtype=given.dtype,
        trust_remote_code=given.trust_remote_code,
    )
