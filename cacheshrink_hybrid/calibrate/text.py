"""Calibration text: a list of strings, a local file, or a data set, as token sequences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CalibrationError

TEXT_COLUMNS = ("text", "content", "document")
MIN_TOKENS = 16


def load_texts(
    texts: Sequence[str] | None,
    dataset: str | Path,
    subset: str | None,
    *,
    num_samples: int,
    split: str = "train",
) -> list[str]:
    """Texts to calibrate or evaluate on.

    Args:
        texts: the texts themselves; wins over `dataset`.
        dataset: path of a local text file (documents are separated by blank lines), or the name of
            a data set for the `datasets` library.
        subset: configuration of the data set.
        num_samples: number of documents that are needed; a data set is read as a stream up to it.

    Raises:
        CalibrationError: nothing usable, or a plain string where a list is due.
    """
    if texts is not None:
        return checked_texts(texts, "calibration_texts")[:num_samples]
    path = Path(dataset)
    if path.is_file():
        documents = path.read_text(encoding="utf-8").split("\n\n")
        return checked_texts([d for d in documents if d.strip()], str(path))[:num_samples]
    from datasets import load_dataset

    try:
        rows = load_dataset(str(dataset), subset, split=split, streaming=True)
        column = next((c for c in TEXT_COLUMNS if c in (rows.column_names or [])), None)
        if column is None:
            raise CalibrationError(
                f"data set {dataset!r} has columns {rows.column_names}; one of "
                f"{', '.join(TEXT_COLUMNS)} is needed, or pass calibration_texts"
            )
        found: list[str] = []
        for row in rows:
            if len(row[column].split()) >= MIN_TOKENS:
                found.append(row[column])
            if len(found) == num_samples:
                break
    except (OSError, ValueError) as error:
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(
            f"data set {dataset!r} ({subset!r}) could not be loaded: {error}; pass "
            "calibration_texts=[...], or the path of a local text file"
        ) from error
    return checked_texts(found, f"data set {dataset!r}")


def checked_texts(texts: object, name: str) -> list[str]:
    """`texts` as a list of non-empty strings, or a `CalibrationError` that says what is wrong."""
    if isinstance(texts, str):
        raise CalibrationError(f"{name} is one string; give a list of strings: [{name}]")
    if not isinstance(texts, Sequence):
        raise CalibrationError(f"{name} is a {type(texts).__name__}; give a list of strings")
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise CalibrationError(f"{name} holds a {type(wrong).__name__}; give strings only")
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise CalibrationError(f"{name} holds no text; give at least one non-empty string")
    return kept


def token_sequences(tokenizer, texts: Sequence[str], *, max_length: int) -> list[Tensor]:
    """Token ids (1, T) of each text, cut at `max_length`, without padding.

    Raises:
        CalibrationError: if all texts together have fewer than 16 tokens.
    """
    sequences = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=max_length).input_ids
        if len(ids) > 1:
            sequences.append(torch.tensor([ids]))
    total = sum(ids.shape[1] for ids in sequences)
    if total < MIN_TOKENS:
        raise CalibrationError(
            f"the calibration text has {total} tokens; give at least {MIN_TOKENS}, better thousands"
        )
    return sequences
