"""Streaming moments are the moments, however the stream is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cacheshrink_hybrid.calibration.calibrate import Moments
from cacheshrink_hybrid.latents.fit.statistics import Samples
from tests.tolerances import FLOAT64

NUM_VECTORS, WIDTH = 60, 5


def vectors() -> torch.Tensor:
    return 3 + torch.randn(NUM_VECTORS, WIDTH, generator=torch.Generator().manual_seed(0))


def moments_of(*chunks: torch.Tensor) -> Moments:
    moments = Moments(WIDTH)
    for chunk in chunks:
        moments.add(chunk)
    return moments


def test_moments_are_those_of_numpy() -> None:
    y = vectors().double().numpy()
    moments = moments_of(vectors())
    assert moments.count == NUM_VECTORS
    assert np.allclose(moments.mean, y.mean(0), rtol=FLOAT64)
    assert np.allclose(moments.covariance, np.cov(y, rowvar=False, bias=True), rtol=FLOAT64)
    assert np.allclose(moments.second_moment, y.T @ y / NUM_VECTORS, rtol=FLOAT64)


@pytest.mark.parametrize("size", [1, 7, 59])
def test_cuts_do_not_matter(size: int) -> None:
    whole, cut = moments_of(vectors()), moments_of(*vectors().split(size))
    assert cut.count == whole.count
    for name in ("mean", "covariance", "second_moment"):
        assert torch.allclose(getattr(cut, name), getattr(whole, name), FLOAT64, FLOAT64)


def test_batch_dimensions_do_not_matter() -> None:
    whole, shaped = moments_of(vectors()), moments_of(vectors().view(3, 4, 5, WIDTH))
    assert torch.equal(shaped.covariance, whole.covariance)


def test_low_precision_is_summed_in_float64() -> None:
    moments = moments_of(torch.ones(5000, WIDTH, dtype=torch.bfloat16))
    assert moments.mean.tolist() == [1.0] * WIDTH
    assert moments.covariance.dtype == torch.float64
    assert float(moments.covariance.abs().max()) == 0


@pytest.mark.parametrize("count", [1, 5, 40])
def test_samples_are_spread_over_all_sequences(count: int) -> None:
    samples = Samples(2, per_sequence=8, total=32)
    for sequence in range(count):
        places = torch.arange(16.0)
        samples.add(torch.stack([torch.full((16,), float(sequence)), places], dim=1)[None])
    kept = samples.stacked()
    assert len(kept) <= max(32, count) and kept.dtype == torch.float32
    by_sequence = [kept[kept[:, 0] == sequence, 1].tolist() for sequence in range(count)]
    due = {1: [0, 2, 4, 6, 8, 10, 12, 14], 5: [0, 4, 8, 12], 40: [0]}[count]
    seen = [places for places in by_sequence if places]
    assert all(places == due for places in seen)
    assert len(seen) == {1: 1, 5: 5, 40: 20}[count]
