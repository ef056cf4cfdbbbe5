"""Models that are given by the name of a directory or on the Hub."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..checkpoint import PLAN_NAME, load_mla_model
from ..errors import ConfigError


def load_named(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A source or converted model on the CPU, in the precision that it was saved in, and its
    tokenizer if there is one.

    Raises:
        ConfigError: nothing that can be loaded has this name.
        CheckpointError: a converted model that is damaged.
    """
    directory = Path(name)
    if (directory / PLAN_NAME).is_file():
        return load_mla_model(directory)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        tokenizer = None
        if not directory.is_dir() or (directory / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model {str(name)!r} cannot be loaded: {error}; give a directory, a name on the Hub, "
            "or a model object with its tokenizer"
        ) from error
    return model.eval(), tokenizer
