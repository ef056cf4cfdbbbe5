"""Text and exercises stay apart."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid import CompressionConfig
from cacheshrink_hybrid.calibration.sequences import CalibrationSequences
from cacheshrink_hybrid.conversion.statistics import model_statistics
from tests.families.tiny_configs import tiny_model


def _ids(count: int, length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randint(3, 60, (1, length), generator=generator) for _ in range(count)]


def test_both_are_iterated_and_plain_sequences_are_text() -> None:
    texts, exercises = _ids(3, 8), _ids(2, 8)
    both = CalibrationSequences(texts, exercises)
    assert [*both] == [*texts, *exercises]
    assert len(both) == 5
    assert CalibrationSequences.of(both) is both
    assert CalibrationSequences.of(iter(texts)).texts == texts


@pytest.mark.parametrize("num_texts", [9, 10, 20])
def test_only_text_is_held_out(num_texts: int) -> None:
    """A prediction says what text loses, and all exercises are fitted to."""
    model, length = tiny_model("llama"), 24
    texts, exercises = _ids(num_texts, length), _ids(11, length)
    config = CompressionConfig(exact_sinks=0, exact_window=0)
    found = model_statistics(model, config, CalibrationSequences(texts, exercises))
    held_out = texts[9::10]
    assert ([] if found.held_out is None else found.held_out.sequences) == held_out
    fitted = num_texts - len(held_out) + len(exercises)
    assert {latent.num_tokens for latent in found.latents} == {fitted * length}
