"""Texts as padded batches of token ids."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..calibration.text import checked_texts
from ..errors import CalibrationError, ConfigError
from ..next_token import IGNORED
from ..text_ids import text_ids

MIN_TOKENS = 2


def training_sequences(tokenizer, dataset: Iterable, max_length: int) -> list[Tensor]:
    """Token ids (T,), 2 <= T <= max_length, of everything in a data set.

    Args:
        tokenizer: not needed where all items are token ids.
        dataset: texts; or records with `input_ids` or `text` (as rows of the `datasets` library
            have); or token ids. Longer ones are cut into several sequences.

    Raises:
        CalibrationError: nothing in it, or no item of two tokens.
        ConfigError: texts without a tokenizer.
    """
    if isinstance(dataset, str):
        raise CalibrationError("the data set is one string; give a list of texts")
    items = [_content(item) for item in dataset]
    if not items:
        raise CalibrationError("the data set is empty; give at least one text of two tokens")
    texts = [item for item in items if isinstance(item, str)]
    if texts:
        checked_texts(texts, "the data set")
        if tokenizer is None:
            raise ConfigError("texts need a tokenizer; give MLATrainer(model, tokenizer)")
    sequences = []
    for item in items:
        ids = torch.as_tensor(text_ids(tokenizer, item) if isinstance(item, str) else item)
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 1 or ids.is_floating_point():
            raise CalibrationError(
                f"an item of the data set has shape {tuple(ids.shape)}; give texts or whole "
                "numbers, one sequence each"
            )
        for start in range(0, len(ids), max_length):
            part = ids[start : start + max_length].long()
            if len(part) >= MIN_TOKENS:
                sequences.append(part)
    if not sequences:
        raise CalibrationError(
            "no text of the data set has two tokens, so there is nothing to predict; give longer "
            "texts"
        )
    return sequences


def _content(item):
    """The text or the ids of an item."""
    if isinstance(item, dict):
        for key in ("input_ids", "text"):
            if key in item:
                return item[key]
        raise CalibrationError(
            f"a record of the data set has the columns {sorted(item)}; `text` or `input_ids` is due"
        )
    return item


def collate(sequences: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batch of `input_ids` and `labels`, (B, longest), padded on the right, where no token of a
    causal model sees it; the first token of a sequence is not predicted."""
    longest = max(len(item["input_ids"]) for item in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, item in enumerate(sequences):
        length = len(item["input_ids"])
        ids[row, :length] = item["input_ids"]
        labels[row, 1:length] = item["input_ids"][1:]
    return {"input_ids": ids, "labels": labels}


class EpochSampler(Sampler[int]):
    """Indices of all sequences in an order of its own for every epoch, then of an empty one until
    the last batch of all processes is full: nobody gets a sequence twice, and nobody waits.

    Args:
        num_sequences: sequences; index `num_sequences` is the empty one.
        global_batch: sequences per forward pass of all processes together.
        epoch: tells the current epoch.
    """

    def __init__(
        self, num_sequences: int, global_batch: int, *, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.num_sequences = num_sequences
        self.length = -(-num_sequences // global_batch) * global_batch
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.num_sequences))
        random.Random(f"{self.seed} {self.epoch()}").shuffle(order)
        yield from order
        yield from [self.num_sequences] * (self.length - self.num_sequences)


EMPTY = {"input_ids": torch.zeros(1, dtype=torch.long)}
"""An item without a token to predict."""


def real_tokens(labels: Tensor) -> Tensor:
    """Mask (B, T) of tokens that are no padding, from labels of `collate`."""
    mask = labels != IGNORED
    mask[:, 0] = mask.any(dim=1)
    return mask
