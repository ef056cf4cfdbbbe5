"""Texts and records as sequences."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.errors import CalibrationError, ConfigError
from cacheshrink_hybrid.next_token import IGNORED
from cacheshrink_hybrid.training.data import (
    EMPTY,
    EpochSampler,
    collate,
    real_tokens,
    training_sequences,
)


class Characters:
    """A tokenizer: one token per character."""

    def __call__(self, text: str):
        return type("Encoding", (), {"input_ids": [ord(c) for c in text]})


def test_long_texts_are_cut_and_single_tokens_left_out() -> None:
    found = training_sequences(Characters(), ["abcdefg", "x", "yz"], 3)
    assert [ids.tolist() for ids in found] == [[97, 98, 99], [100, 101, 102], [121, 122]]


@pytest.mark.parametrize(
    "dataset",
    [
        [[1, 2, 3], [4, 5]],
        [torch.tensor([1, 2, 3]), torch.tensor([[4, 5]])],
        [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5], "text": "not used"}],
    ],
    ids=["lists", "tensors", "records"],
)
def test_token_ids_need_no_tokenizer(dataset) -> None:
    found = training_sequences(None, dataset, 10)
    assert [ids.tolist() for ids in found] == [[1, 2, 3], [4, 5]]


def test_records_with_text() -> None:
    (ids,) = training_sequences(Characters(), [{"text": "ab", "source": "x"}], 10)
    assert ids.tolist() == [97, 98]


def test_batch_is_padded_and_first_tokens_are_not_predicted() -> None:
    batch = collate([{"input_ids": torch.tensor(ids)} for ids in ([5, 6, 7], [8, 9])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, 9, IGNORED]]


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        ([], "the data set is empty"),
        (["a", "b"], "no text of the data set has two tokens"),
        (["", " "], "holds no text"),
        ("one text", "is one string"),
        ([{"words": "ab"}], r"columns \['words'\]"),
        ([torch.randn(4)], "whole numbers"),
        ([torch.ones(2, 3, dtype=torch.long)], r"shape \(2, 3\)"),
    ],
    ids=["empty", "single tokens", "blank", "string", "columns", "floats", "matrix"],
)
def test_bad_data_set(dataset, match: str) -> None:
    with pytest.raises(CalibrationError, match=match):
        training_sequences(Characters(), dataset, 10)


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="need a tokenizer"):
        training_sequences(None, ["ab"], 10)


def test_every_sequence_once_and_the_rest_empty() -> None:
    epoch = 0
    sampler = EpochSampler(10, 4, seed=0, epoch=lambda: epoch)
    first = list(sampler)
    assert len(first) == len(sampler) == 12
    assert sorted(first) == [*range(10), 10, 10]
    assert first[10:] == [10, 10]
    assert list(sampler) == first
    epoch = 1
    assert list(sampler) != first


def test_empty_rows_count_nowhere() -> None:
    batch = collate([{"input_ids": torch.tensor([5, 6])}, EMPTY])
    assert (batch["labels"] != IGNORED).sum() == 1
    assert real_tokens(batch["labels"]).tolist() == [[True, True], [False, False]]
