"""Biases of scores by distance are T5's, and masks say what they said before."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.t5.modeling_t5 import T5Attention

from cacheshrink_hybrid.latents.attention.cached_layer import Slots
from cacheshrink_hybrid.latents.attention.relative_bias import bias_of, bucket_of, with_bias


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (7, 33), (2, 3)])
def test_buckets(num_buckets: int, max_distance: int) -> None:
    distance = torch.arange(5 * max_distance)
    due = T5Attention._relative_position_bucket(
        -distance, bidirectional=False, num_buckets=num_buckets, max_distance=max_distance
    )
    assert torch.equal(bucket_of(distance, num_buckets, max_distance), due)
    assert due.max() == num_buckets - 1


def test_a_bias_goes_by_slots() -> None:
    table = nn.Embedding(8, 3)
    whole = bias_of(table, 20, 30, Slots(0, 0, 30))
    assert whole.shape == (1, 3, 30, 30)
    assert torch.equal(bias_of(table, 20, 4, Slots(26, 0, 30)), whole[:, :, 26:])
    assert torch.equal(bias_of(table, 20, 4, Slots(26, 5, 25)), whole[:, :, 26:, 5:])
    later = bias_of(table, 20, 4, Slots(torch.tensor(26), 0, 30))
    assert torch.equal(later, whole[:, :, 26:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_keep_what_they_hide(dtype: torch.dtype) -> None:
    bias = torch.randn(1, 3, 4, 9).to(dtype) * 60
    least = torch.finfo(dtype).min
    slots = Slots(5, 0, 9)
    causal = torch.ones(4, 9, dtype=torch.bool).tril(5)
    due = torch.where(causal, bias, least)
    assert torch.equal(with_bias(None, bias, slots), due)
    assert torch.equal(with_bias(causal[None, None], bias, slots), due)
    wide = torch.cat([causal, torch.zeros(4, 3, dtype=torch.bool)], dim=1)[None, None]
    assert torch.equal(with_bias(wide, bias, slots), due)
    additive = torch.where(causal, 0.0, least).to(dtype)[None, None]
    found = with_bias(additive, bias, slots)
    assert torch.equal(found[:, :, causal], bias[:, :, causal])
    assert found.isfinite().all() and (found[:, :, ~causal] < 0.9 * least).all()
