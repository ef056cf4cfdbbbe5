"""A source's tokenizer, or one line that says that it has none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import ConfigError

_OF_A_TOKENIZER = re.compile(
    r"(added_tokens|merges|sentencepiece|special_tokens|spiece|spm|tekken|tokenizer|vocab)|"
    r".*(bpe|\.model|\.tiktoken)",
    re.IGNORECASE,
)
"""Names of files that tokenizers of transformers are saved in."""


def load_tokenizer(name: str | Path, **where: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    transformers makes one of no words where a directory has no file of a tokenizer, for some
    families, and fails for others.

    Args:
        where: `subfolder`, `gguf_file`, `trust_remote_code`, ... of `from_pretrained`.

    Raises:
        ConfigError: there is none.
    """
    directory = Path(name) / (where.get("subfolder") or "")
    looked_into = directory.is_dir() and where.get("gguf_file") is None
    if looked_into and not any(_OF_A_TOKENIZER.match(file.name) for file in directory.iterdir()):
        raise _no_tokenizer(directory)
    try:
        return AutoTokenizer.from_pretrained(name, **where)
    except ValueError as error:
        if "backend tokenizer" not in str(error):
            raise
        raise _no_tokenizer(name) from error


def _no_tokenizer(name: str | Path) -> ConfigError:
    return ConfigError(
        f"{name} holds no tokenizer; save the model's own beside it "
        "(tokenizer.save_pretrained(directory))"
    )
