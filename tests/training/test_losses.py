"""Losses of activations: per token, without padding, and zero where nothing is wrong."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.training.data import collate, real_tokens
from cacheshrink_hybrid.training.losses import metric_loss, relative_loss

LENGTHS = (7, 4)
V = 11


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return collate([{"input_ids": torch.randint(0, V, (n,))} for n in LENGTHS])


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
