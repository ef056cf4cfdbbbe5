"""Requests over real texts: some of them begin prompts, and passages of others end them.

What real texts have and drawn ones have not: beginnings that they share with each other, and the
lengths that people write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from ...demo.corpus import PYTHON_DOCS, training_text
from ...errors import ConfigError
from .workloads import BESIDE, Group, PromptRequest, Tokens, interleaved

MOST_TEXTS = 200
"""That begin prompts, the first ones."""
BEGINNING_TOKENS = 32, 16000
"""Fewest that a beginning has, and most, behind which it is cut."""
PASSAGE_TOKENS = 20, 400
"""Fewest and most of the passage at the end of a prompt, and of an answer."""
FURTHER_REQUESTS = 3
"""Of a group, on average, beside the first."""


def read_texts(name: str) -> list[str]:
    """Texts that begin prompts.

    Args:
        name: `python-docs`, a file of JSON lines with `text` each, or a file of text, which is cut
            where two lines or more are empty.

    Raises:
        ConfigError: no such file, no such text, or fewer than two.
    """
    if name == PYTHON_DOCS:
        return list(islice(training_text(), MOST_TEXTS))
    path = Path(name)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a text file in UTF-8") from error
    if path.suffix == ".jsonl":
        texts = _of_lines(content, path)
    else:
        texts = content.replace("\r\n", "\n").split("\n\n\n")
    texts = [text.strip() for text in texts if text.strip()]
    if len(texts) < 2:
        raise ConfigError(
            f"{path} has {len(texts)} texts; give two or more, as JSON lines with a text each "
            "(.jsonl) or with two empty lines between them"
        )
    return texts[:MOST_TEXTS]


def _of_lines(content: str, path: Path) -> list[str]:
    try:
        found = [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} has no texts as JSON lines ({error!r}); each line is to have a text"
        ) from error
    if not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{path} has a text that is no string; each line is to have one")
    return found


def text_workload(
    texts: Sequence[str],
    encode: Callable[[str], list[int]],
    count: int,
    seed: int = 0,
    *,
    beside: float = BESIDE,
) -> list[PromptRequest]:
    """A seeded workload of `count` requests: beginnings, some far more in use than others, and with
    each of them several passages, one request after another.

    Args:
        texts: see `read_texts`.
        encode: text to tokens.
        beside: see `workloads.interleaved`.

    Raises:
        ConfigError: fewer than two texts have the tokens of a beginning.
    """
    least, most = BEGINNING_TOKENS
    encoded = [np.asarray(encode(text), dtype=np.int64) for text in texts]
    beginnings = [tokens[:most] for tokens in encoded if len(tokens) >= least]
    if len(beginnings) < 2:
        raise ConfigError(
            f"{len(beginnings)} of {len(texts)} texts have {least} tokens or more; give two or "
            "more that have"
        )
    random = np.random.default_rng(seed)
    return interleaved(_groups(beginnings, random), count, random, beside=beside)


def _groups(texts: Sequence[Tokens], random: np.random.Generator) -> Iterator[Group]:
    weights = 1 / np.arange(1, len(texts) + 1)
    order = random.permutation(len(texts))
    while True:
        beginning = texts[order[random.choice(len(texts), p=weights / weights.sum())]]
        yield [
            (np.concatenate([beginning, _passage(texts, random)]), _passage(texts, random))
            for _ in range(1 + random.poisson(FURTHER_REQUESTS))
        ]


def _passage(texts: Sequence[Tokens], random: np.random.Generator) -> Tokens:
    text = texts[int(random.integers(len(texts)))]
    least, most = PASSAGE_TOKENS
    start = int(random.integers(max(1, len(text) - least)))
    return text[start : start + int(random.integers(least, most + 1))]
