"""What a conversion was measured to cost, as plain data."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from cacheshrink_hybrid.certificate import Certificate


def of_losses(before: list[float], after: list[float]) -> Certificate:
    return Certificate.of_losses(
        before, after, num_tokens=30, num_reading_coded=20, self_check=True
    )


def test_increase_is_paired_by_sequence() -> None:
    """Sequences differ by far more than the conversion costs any of them."""
    certificate = of_losses([1.0, 5.0, 3.0], [1.1, 5.2, 3.3])
    assert certificate.source_loss == pytest.approx(3.0)
    assert certificate.loss_increase == pytest.approx(0.2)
    assert certificate.standard_error == pytest.approx(0.1 / 3**0.5)
    told = (
        "measured on 3 held-out sequences (30 tokens, 20 of which read coded ones): "
        "+0.2000 +- 0.0577 nats per token above"
    )
    assert str(certificate).startswith(told)


def test_one_sequence_has_no_standard_error() -> None:
    certificate = of_losses([1.0], [1.5])
    assert certificate.standard_error is None
    assert "1 held-out sequence, which gives no standard error (" in str(certificate)
    assert "+0.5000 nats" in str(certificate)


def test_circumstances() -> None:
    told = of_losses([1.0], [1.5]).circumstances
    assert told.startswith("every replaced layer was rebuilt and compared before; cacheshrink_hybr")
    assert f"torch {torch.__version__}" in told


def test_travels_as_json() -> None:
    certificate = of_losses([1.0, 2.0], [1.5, 2.0])
    assert Certificate.from_dict(json.loads(json.dumps(asdict(certificate)))) == certificate
    assert {"cacheshrink_hybrid", "python", "torch", "transformers"} == set(certificate.versions)
