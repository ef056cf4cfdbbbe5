"""Models that are given by the name of a directory or on the Hub."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoint.load import load_mla_model
from ..checkpoint.load_faults import is_converted_directory, loading
from ..checkpoint.source_model import gguf_location, whole_model


def load_named(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A source or converted model on the CPU, in the precision that it was saved in, and its
    tokenizer if there is one.

    Raises:
        ConfigError: nothing that can be loaded has this name.
        CheckpointError: a converted model that is damaged.
    """
    if is_converted_directory(name):
        return load_mla_model(name)
    with loading(name):
        place, where = gguf_location(name)
        options = {**where, "trust_remote_code": False}
        model = whole_model(place, dtype="auto", **options)
        tokenizer = None
        directory = Path(place)
        if where or not directory.is_dir() or (directory / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
    return model.eval(), tokenizer
