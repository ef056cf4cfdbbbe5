"""How much text is enough, and how long its sequences may be."""

from __future__ import annotations

import warnings

import pytest
import torch

from cacheshrink_hybrid.calibration.amount import (
    MIN_TOKENS_PER_CHANNEL,
    warn_of_little_text,
    within_positions,
)
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.errors import CacheShrinkWarning
from cacheshrink_hybrid.latents.fit.statistics import LatentStatistics
from tests.families.tiny_configs import tiny_model


def statistics(num_tokens: int, width: int = 8) -> LatentStatistics:
    eye = torch.eye(width, dtype=torch.float64)
    return LatentStatistics(mean=eye[0], covariance=eye, metric=eye, num_tokens=num_tokens)


def test_little_text_is_warned_of_once_for_all_layers() -> None:
    short = MIN_TOKENS_PER_CHANNEL * 8 - 1
    with pytest.warns(
        CacheShrinkWarning, match=rf"{short} tokens .* 8 numbers .* give 128 "
    ) as found:
        warn_of_little_text([statistics(short), statistics(short), statistics(10**6)])
    assert len(found) == 1


def test_enough_text_is_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_little_text([statistics(MIN_TOKENS_PER_CHANNEL * 8)])


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_sequences_are_no_longer_than_the_model(case: str) -> None:
    model = tiny_model(case)
    limit = model.config.max_position_embeddings
    with pytest.warns(CacheShrinkWarning, match=f"beyond the {limit} positions"):
        config = within_positions(CompressionConfig(max_calibration_length=100_000), model)
    assert config.max_calibration_length == limit
    with warnings.catch_warnings():  # the default is no wish of anybody's
        warnings.simplefilter("error")
        assert within_positions(CompressionConfig(), model).max_calibration_length <= 512
        short = CompressionConfig(max_calibration_length=7)
        assert within_positions(short, model) is short
