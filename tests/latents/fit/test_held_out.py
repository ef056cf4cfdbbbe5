"""A tenth of the calibration text is kept from fitting, and what is lost there is predicted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cacheshrink_hybrid.calibration.calibrate import decoder_layers
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.conversion.statistics import model_statistics
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.fit.held_out import held_out_text, split_sequences
from cacheshrink_hybrid.plan import CompressionPlan
from tests.families.tiny_configs import tiny_model
from tests.models import VOCAB_SIZE, calibration_ids, unchanged


@pytest.mark.parametrize(("count", "due"), [(1, 0), (9, 0), (10, 1), (25, 2), (128, 12)])
def test_every_tenth_is_held_out(count: int, due: int) -> None:
    sequences = [torch.full((1, 2), i) for i in range(count)]
    fitted, held_out = split_sequences(sequences)
    assert len(held_out) == due
    seen = sorted(int(ids[0, 0]) for ids in fitted + held_out)
    assert seen == list(range(count))


@pytest.mark.parametrize("metric", ["fisher", "score", "activation"])
def test_samples_are_of_the_held_out_text(metric: str) -> None:
    model = tiny_model("llama")
    parts = read_attention(model, model_spec(model.config))
    ids = calibration_ids(2)
    with unchanged(model):
        text = held_out_text(model, decoder_layers(model), parts, ids, metric=metric)
    tokens = sum(one.numel() for one in ids)
    with torch.no_grad():
        losses = [float(model(one, labels=one).loss) for one in ids]
    assert text.losses == pytest.approx(losses, rel=1e-5)
    for part, one in zip(parts, text.samples, strict=True):
        assert one.vectors.shape == (tokens, part.width)
        if metric == "fisher":
            assert one.gradients is not None and one.gradients.shape == one.vectors.shape
            assert one.gradients.abs().sum() > 0
        else:
            assert one.gradients is None


SETTINGS = {
    "coded": {},
    "hadamard": {"hadamard": True},
    "16 bits": {"cache_bits": 16},
    "separate": {"compression_method": "separate", "cache_bits": 16},
    "xkv": {"compression_method": "xkv", "cross_layer_group_size": 2},
    "per head": {"compression_method": "per_head"},
    "rotated": {"compression_method": "rotate"},
    "rotated, score": {"compression_method": "rotate_joint", "metric": "score"},
    "activation": {"metric": "activation"},
    "score": {"metric": "score"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_prediction_on_the_text_of_fitting_is_that_of_fitting(settings: dict) -> None:
    """Where the held-out text is the same text, both predictions agree."""
    model = tiny_model("llama")
    config = CompressionConfig(**{"compression_ratio": 4.0, **settings})
    ids = calibration_ids(9)
    statistics = model_statistics(model, config, ids)
    assert statistics.held_out is None
    parts = read_attention(model, model_spec(model.config))
    same = held_out_text(
        model,
        decoder_layers(model),
        parts,
        ids,
        metric=config.metric,
        sinks=statistics.sinks,
    )
    statistics = replace(statistics, held_out=same)
    plan = convert_model(model, config, statistics=statistics)
    assert plan.held_out_loss == pytest.approx(plan.predicted_loss, rel=0.1)


def test_overfitting_shows_on_held_out_text_only() -> None:
    """Few tokens, many channels: the prediction on the text of fitting is far too good."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    ids = [torch.randint(vocabulary, (1, 4), generator=generator) for _ in range(20)]
    with pytest.warns(UserWarning, match="tokens of calibration are few"):
        config = CompressionConfig(compression_ratio=4.0, exact_sinks=0)
        plan = convert_model(model, config, ids)
    assert plan.held_out_loss is not None
    assert plan.held_out_loss > 1.2 * plan.predicted_loss
    assert "on held-out calibration text" in plan.table(model_spec(model.config))
    assert CompressionPlan.from_dict(plan.to_dict()) == plan


def test_kinds_are_chosen_by_what_they_lose_on_held_out_text() -> None:
    """What is overfitted looks cheap enough to give up for the fastest kind, and is not."""
    model = tiny_model("llama")
    settings = {"exact_sinks": 0, "device_profile": "1e9:1"}
    config = CompressionConfig(compression_ratio=4.0, **settings)
    fastest = [0, 0]
    for seed in range(4):  # one text alone may be chosen alike by chance
        generator = torch.Generator().manual_seed(seed)
        ids = [torch.randint(VOCAB_SIZE, (1, 4), generator=generator) for _ in range(16)]
        with pytest.warns(UserWarning, match="tokens of calibration are few"):
            statistics = model_statistics(model, config, ids)
        for which, known in enumerate((statistics, replace(statistics, held_out=None))):
            plan = convert_model(tiny_model("llama"), config, statistics=known)
            fastest[which] += [latent.method for latent in plan.latents].count("per_head")
    assert 2 * fastest[0] < fastest[1]


def test_without_held_out_text_the_plan_says_so() -> None:
    model = tiny_model("llama")
    spec = model_spec(model.config)
    ids = calibration_ids(4)
    plan = convert_model(model, CompressionConfig(), ids, calibrated_on="a text")
    assert plan.held_out_loss is None
    assert plan.table(spec).startswith("calibrated on a text\n")
    assert "on the calibration text itself" in plan.table(spec)
