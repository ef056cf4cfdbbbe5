"""Losses as sums over tokens: per token, without padding, and zero where nothing is wrong."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.training.data import collate, real_tokens
from cacheshrink_hybrid.training.losses import (
    distillation_loss,
    language_model_loss,
    metric_loss,
    relative_loss,
)

LENGTHS = (7, 4)
V = 11


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return collate([{"input_ids": torch.randint(0, V, (n,))} for n in LENGTHS])


def test_language_model_loss_is_the_sum_over_sequences(batch) -> None:
    logits = torch.randn(2, max(LENGTHS), V)
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length - 1):
            log_p = torch.log_softmax(logits[row, t], -1)
            expected -= float(log_p[batch["input_ids"][row, t + 1]])
    loss = language_model_loss(logits, batch["labels"])
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_distillation_is_summed_over_predicted_tokens_only(batch) -> None:
    logits, taught = torch.randn(2, 7, V), torch.randn(2, 7, V)
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length - 1):
            p = torch.softmax(taught[row, t] / 2, -1)
            q = torch.softmax(logits[row, t] / 2, -1)
            expected += 4 * float((p * (p / q).log()).sum())
    loss = distillation_loss(logits, taught, batch["labels"], 2.0)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(taught, taught, batch["labels"], 2.0)) == pytest.approx(0)
    spoiled = taught.clone()
    spoiled[1, 3:] += 100 * torch.randn(4, V)  # after the last predicted token of the short text
    again = distillation_loss(logits, spoiled, batch["labels"], 2.0)
    torch.testing.assert_close(again, loss)


def test_metric_loss(batch) -> None:
    mask = real_tokens(batch["labels"])
    assert mask.sum() == sum(LENGTHS)
    y, target = torch.randn(2, 7, 3), torch.randn(2, 7, 3)
    metric = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    errors = (y - target)[mask]
    expected = (errors[:, 0] ** 2 + 2 * errors[:, 1] ** 2).sum()
    torch.testing.assert_close(metric_loss(y, target, metric, mask), expected)


def test_relative_loss(batch) -> None:
    mask = real_tokens(batch["labels"])
    target = torch.randn(2, 7, 5)
    assert float(relative_loss(target, target, mask)) == 0
    # As large as the target itself: one per token.
    zero = torch.zeros_like(target)
    assert float(relative_loss(zero, target, mask)) == pytest.approx(sum(LENGTHS), rel=1e-5)
