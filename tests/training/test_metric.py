"""The metric of a converted model."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.calibration.calibrate import calibrate
from cacheshrink_hybrid.errors import CalibrationError
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.fit.metrics import Labels
from cacheshrink_hybrid.training.bases import latent_modules
from cacheshrink_hybrid.training.metric import output_metrics
from tests.models import calibration_ids, pair, unchanged


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize(
    ("case", "length"),
    [
        ("llama", 24),
        ("qwen3", 24),
        ("granitemoehybrid", 24),
        ("deepseek_v3", 24),
        ("gemma3n_text", 24),
        ("gemma3n_text", 6),
    ],
)
def test_lossless_model_has_the_metric_of_its_source(case: str, length: int) -> None:
    """Also on texts so short that they are otherwise read without expanding keys and values."""
    both = pair(case)
    source = both.source
    parts = read_attention(source, model_spec(source.config))
    sequences = calibration_ids(6, length)
    expected = calibrate(source, parts, sequences, metric="fisher", labels=Labels("model", 3))
    with unchanged(both.converted):
        modules = latent_modules(both.converted)
        found = output_metrics(both.converted, modules, sequences, seed=3)
    for statistics, metric in zip(expected, found.values(), strict=True):
        scale = statistics.metric.abs().max()
        assert (metric - statistics.metric).abs().max() < 1e-3 * scale


def test_activation_metric_needs_no_text() -> None:
    model = pair("llama").converted
    metrics = output_metrics(model, latent_modules(model), [], metric="activation")
    assert all(torch.equal(m, torch.eye(len(m), dtype=m.dtype)) for m in metrics.values())


def test_no_text() -> None:
    model = pair("llama").converted
    with pytest.raises(CalibrationError, match="no tokens"):
        output_metrics(model, latent_modules(model), [])
