"""Calibration text: a list of strings, a local file, or a data set, as token sequences."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..chat_template import Conversation, chat_ids, chat_text
from ..checkpoint.load_faults import first_line, hub_is_offline
from ..config import CompressionConfig
from ..demo.corpus import PYTHON_DOCS, held_out_text, training_text
from ..errors import CalibrationError
from ..text_ids import text_ids
from .answered import answered
from .exercises import RecallExercise, RecallKind, recall_exercises
from .sequences import CalibrationSequences

T = TypeVar("T")
TEXT_COLUMNS = ("text", "content", "document")
HUB_NAMES = {"wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1")}
"""Data sets by a shorter name: id on the Hub, and the configuration to take without another."""
HUB_SECONDS = 10.0
"""How long the Hub may take to answer at all."""
MIN_TOKENS = 16
MIN_WORDS = 16
DOCUMENT_SEPARATOR = "<|endoftext|>"
RECALL_DISTANCES = (16, 48, 128)
"""Tokens between an item and its return, in exercises of calibration."""
RECALL_SEED = 7700


def load_texts(
    texts: Sequence[str] | None,
    dataset: str | Path,
    subset: str | None = None,
    *,
    num_samples: int | None = None,
    split: str = "train",
) -> list[str]:
    """Texts to calibrate or evaluate on.

    Args:
        texts: the texts themselves; they win over `dataset`.
        dataset: path of a local text file (one document, or several with a line `<|endoftext|>`
            between them), `python-docs`, or the name of a data set for the `datasets` library.
        subset: configuration of the data set.
        num_samples: documents to take, evenly spread over what there is (a data set of the Hub is
            read from its start); None for all.
        split: `train` or `test`; `python-docs` keeps whole modules apart.

    Raises:
        CalibrationError: nothing usable, or a plain string where a list is due.
    """
    if texts is not None:
        return evenly_spread(checked_texts(texts, "texts"), num_samples)
    path = Path(dataset)
    offline = path.is_file() or str(dataset) == PYTHON_DOCS
    if offline and subset is not None:
        raise CalibrationError(
            f"{dataset} has no configurations, so {subset!r} cannot be chosen; leave it out, or "
            "name a data set on the Hub"
        )
    if path.is_file():
        documents = _read(path).split(DOCUMENT_SEPARATOR)
        documents = [document.strip() for document in documents]
        return evenly_spread(checked_texts(documents, str(path)), num_samples)
    if str(dataset) == PYTHON_DOCS:
        return evenly_spread(
            list(training_text() if split == "train" else held_out_text()), num_samples
        )
    return _stream(str(dataset), subset, split, num_samples)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is no text in UTF-8 (byte {error.start}); give a text file"
        ) from error
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from error


def evenly_spread(documents: Sequence[T], number: int | None) -> list[T]:
    """So many of the documents, at equal distances; all of them for None or where there are
    fewer."""
    if number is None or number >= len(documents):
        return list(documents)
    return [documents[i * len(documents) // number] for i in range(number)]


def _stream(dataset: str, subset: str | None, split: str, num_samples: int | None) -> list[str]:
    """Documents of at least 16 words from the start of a data set of the Hub."""
    dataset, default = HUB_NAMES.get(dataset, (dataset, None))
    subset = subset or default
    _check_hub(dataset)
    from datasets import load_dataset

    try:
        rows = load_dataset(dataset, subset, split=split, streaming=True)
        column = next((c for c in TEXT_COLUMNS if c in (rows.column_names or [])), None)
        if column is None:
            raise CalibrationError(
                f"data set {dataset!r} has columns {rows.column_names}; one of "
                f"{', '.join(TEXT_COLUMNS)} is needed, or pass the texts themselves"
            )
        long_enough = (row[column] for row in rows if len(row[column].split()) >= MIN_WORDS)
        found = list(islice(long_enough, num_samples))
    except (OSError, ValueError) as error:
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(
            f"data set {dataset!r} ({subset!r}) could not be loaded: {first_line(error)}; "
            f"pass calibration_texts=[...], the path of a local text file, or {PYTHON_DOCS!r}"
        ) from error
    return checked_texts(found, f"data set {dataset!r}")


def _check_hub(dataset: str) -> None:
    """Raise at once where `load_dataset` would try again and again to reach the Hub."""
    reason = "HF_HUB_OFFLINE is set" if hub_is_offline() else _unreachable()
    if reason is not None:
        raise CalibrationError(
            f"{dataset!r} is no file here, and the Hub cannot be asked for a data set of this name "
            f"({reason}); give calibration_texts=[...], the path of a local text file, or "
            f"{PYTHON_DOCS!r}, which needs no network"
        )


def _unreachable() -> str | None:
    """Why no connection to the Hub can be made; None if it can, or goes by a proxy."""
    from huggingface_hub.constants import ENDPOINT

    address = urlsplit(ENDPOINT)
    if address.scheme in getproxies():
        return None
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=HUB_SECONDS):
            return None
    except OSError as error:
        return f"{address.hostname}: {error.strerror or error}"


def checked_texts(texts: object, name: str) -> list[str]:
    """`texts` as a list of non-empty strings, or a `CalibrationError` that says what is wrong."""
    if isinstance(texts, str):
        raise CalibrationError(f"{name} is one string; give a list of strings: [{name}]")
    if not isinstance(texts, Sequence):
        raise CalibrationError(f"{name} is a {type(texts).__name__}; give a list of strings")
    wrong = [type(text).__name__ for text in texts if not isinstance(text, str)]
    if wrong:
        raise CalibrationError(f"{name} holds a {wrong[0]}; give strings only")
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise CalibrationError(f"{name} holds no text; give at least one non-empty string")
    return kept


def token_sequences(
    tokenizer, texts: Sequence[str], *, max_length: int, num_sequences: int | None = None
) -> list[Tensor]:
    """Token ids (1, T) of texts, T <= max_length, without padding.

    The first `max_length` tokens of every text come first; if those are fewer than `num_sequences`
    sequences, the texts' following stretches come after them.

    Raises:
        CalibrationError: if all texts together have fewer than 16 tokens.
    """
    return _cut([text_ids(tokenizer, text) for text in texts], max_length, num_sequences)


def _cut(
    documents: Sequence[Sequence[int]], max_length: int, num_sequences: int | None
) -> list[Tensor]:
    tokens = [torch.tensor([ids]).long() for ids in documents]
    total = sum(ids.shape[1] for ids in tokens)
    if total < MIN_TOKENS:
        raise CalibrationError(
            f"the text has {total} tokens; give at least {MIN_TOKENS}, better thousands"
        )
    sequences = [ids[:, :max_length] for ids in tokens]
    if num_sequences is not None:
        longest = max(ids.shape[1] for ids in tokens)
        for start in range(max_length, longest, max_length):
            if len(sequences) >= num_sequences:
                break
            stretches = [ids[:, start : start + max_length] for ids in tokens]
            sequences += [ids for ids in stretches if ids.shape[1] > 1]
        sequences = sequences[:num_sequences]
    return [ids for ids in sequences if ids.shape[1] > 1]


def calibration_exercises(
    tokenizer, texts: Sequence[str], count: int, *, max_length: int, seed: int = 0
) -> list[RecallExercise]:
    """Exercises in remembering of at most `max_length` tokens: random letters and `key: value`
    lists that return after a stretch of the texts.

    Args:
        texts: what stands between an item and its return.
        count: number of exercises.
        seed: of the items; those that `measure_recall` asks for are others.
    """
    kinds: tuple[RecallKind, ...] = ("keys", "letters")
    exercises = []
    for i in range(count):
        exercises += recall_exercises(
            tokenizer,
            kind=kinds[i % len(kinds)],
            distance=RECALL_DISTANCES[i // len(kinds) % len(RECALL_DISTANCES)],
            count=1,
            seed=RECALL_SEED + seed + i,
            filler=texts,
        )
    return [exercise.cut(max_length) for exercise in exercises]


def calibration_sequences(
    tokenizer,
    texts: Sequence[str],
    config: CompressionConfig,
    chats: Sequence[Conversation] = (),
    *,
    model: PreTrainedModel | None = None,
) -> CalibrationSequences:
    """What calibration reads: the texts and the chats in turn, and exercises in remembering.

    Args:
        chats: conversations, which the tokenizer's chat template turns into text.
        model: the source. Where the settings name no number of exercises, those that it cannot do
            are left out.

    Raises:
        CalibrationError: if all text together has fewer than 16 tokens.
        ConfigError: chats without a chat template, or that it refuses.
    """
    length = config.max_calibration_length
    kinds = (
        [chat_ids(tokenizer, chat) for chat in chats],
        [text_ids(tokenizer, text) for text in texts],
    )
    documents = [ids for pair in zip_longest(*kinds) for ids in pair if ids is not None]
    read = _cut(documents, length, config.num_calibration_samples)
    exercises = calibration_exercises(
        tokenizer,
        texts or [chat_text(tokenizer, chat) for chat in chats],
        config.recall_samples,
        max_length=length,
        seed=config.seed,
    )
    if model is not None and config.num_recall_samples is None:
        exercises = answered(model, exercises)
    return CalibrationSequences(
        read, [torch.tensor([exercise.token_ids]) for exercise in exercises]
    )
