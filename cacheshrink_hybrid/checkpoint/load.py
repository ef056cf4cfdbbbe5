"""Loading converted models with what was saved beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import ConfigError
from .auto_config import CacheShrinkConfig
from .description import read_checkpoint
from .load_faults import device_fault
from .model_class import model_class_of
from .pretrained_arguments import HUB_ARGUMENTS, local_directory, taken
from .savable_model import SavableModel, savable_class


def load_mla_model(
    load_directory: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    **kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Read a converted model back, in evaluation mode, and its tokenizer if one was saved.

    Args:
        load_directory: directory that `save_mla_model` wrote, or a name on the Hub.
        device: where to put the model; None for the CPU.
        dtype: precision; None for that of the checkpoint.
        kwargs: see `SavableModel.from_pretrained`.

    Raises:
        CheckpointError: no checkpoint of ours, pickled weights, or tensors that are missing, extra,
            torn, changed or of another shape.
    """
    where = taken(kwargs, HUB_ARGUMENTS)
    fault = None if str(device) == "meta" else device_fault(device)
    if fault is not None:
        raise ConfigError(f"device {fault}")
    directory = local_directory(load_directory, where)
    if device is not None and torch.device(device).type != "cpu":
        kwargs.setdefault("device_map", device)  # no copy on the way
    trusted = bool(kwargs.pop("trust_remote_code", False))  # None would ask on standard input
    model = SavableModel.from_pretrained(
        directory, dtype=dtype if dtype is not None else "auto", **kwargs
    )
    tokenizer = None
    if (directory / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trusted)
    return model, tokenizer


def empty_model(config: CacheShrinkConfig, **kwargs: Any) -> PreTrainedModel:
    """A converted model with random weights, by the plan beside the config that `AutoConfig` read.

    Args:
        kwargs: as `AutoModelForCausalLM.from_config` takes them.
    """
    directory = local_directory(config.name_or_path, taken(kwargs, HUB_ARGUMENTS))
    source = config.source()
    model_class = savable_class(model_class_of(source))
    return model_class._from_config(source, plan=read_checkpoint(directory).plan, **kwargs)
