"""A choice is added by one row and one function: each kind of row, added for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid import convert_to_mla, load_mla_model, plan_of, save_mla_model
from cacheshrink_hybrid.cli.parsers import convert as convert_program
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.errors import ConfigError, PlanError
from cacheshrink_hybrid.latents.fit.factors import Bases, LatentFactors, Unit, scaled_factors
from cacheshrink_hybrid.latents.fit.metrics import ActivationMetric
from cacheshrink_hybrid.methods import (
    LATENT_KINDS,
    METRICS,
    STATE_METHODS,
    LatentKind,
    Metric,
    choices,
)
from tests.families.tiny_configs import tiny_model
from tests.models import random_ids
from tests.texts import TEXTS, word_tokenizer

HERE = __name__
QUIET = {"verbose": False, "tokenizer": word_tokenizer(), "calibration_texts": TEXTS}


def plain_axes(units: Sequence[Unit]) -> list[Bases]:
    """Channels of keys and values as they are, by what they vary and cost."""
    return [Bases.unranked(unit, _axes) for unit in units]


def _axes(unit: Unit) -> LatentFactors:
    axes = []
    for half in (0, 1):
        covariance, metric = unit.half(half)
        order = (covariance.diagonal() * metric.diagonal()).argsort(descending=True)
        axes.append(torch.eye(unit.key_width, dtype=torch.float64)[:, order])
    key, value = axes
    return scaled_factors(unit, "axes", key, value, torch.block_diag(key.T, value.T))


class DoubledMetric(ActivationMetric):
    """Twice the length of an error."""

    def matrix(self, covariance: torch.Tensor) -> torch.Tensor:
        return 2 * super().matrix(covariance)


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> str:
    """The method `axes`, for the duration of a test."""
    row = LatentKind(
        name="axes", words="channels as they are", fit=f"{HERE}:plain_axes", ranked=False
    )
    monkeypatch.setitem(LATENT_KINDS, row.name, row)
    return row.name


@pytest.mark.parametrize("bits", ["auto", 16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_method_is_a_row_and_a_function(
    axes: str, family: str, bits: int | str, tmp_path: Path
) -> None:
    model, _ = convert_to_mla(tiny_model(family), 4.0, axes, cache_bits=bits, **QUIET)
    plan = plan_of(model)
    assert {latent.method for latent in plan.latents} == {axes}
    assert plan.compression_ratio >= 4
    tokens = model.generate(random_ids(2, 5), max_new_tokens=4, do_sample=False)
    assert tokens.shape == (2, 9)
    save_mla_model(model, None, tmp_path)
    loaded, _ = load_mla_model(tmp_path)
    assert plan_of(loaded) == plan
    assert torch.equal(loaded.generate(random_ids(2, 5), max_new_tokens=4, do_sample=False), tokens)


def test_a_method_without_loss_is_exact(axes: str) -> None:
    """A basis of all channels gives the source's logits."""
    source = tiny_model("llama")
    expected = source(random_ids(1, 9)).logits
    model, _ = convert_to_mla(source, 1.0, axes, **QUIET)
    assert torch.allclose(model(random_ids(1, 9)).logits, expected, rtol=1e-3, atol=1e-4)


def test_a_new_method_is_known_to_settings_and_programs(axes: str) -> None:
    assert CompressionConfig(compression_method=axes).latent_kind is LATENT_KINDS[axes]
    assert "axes: channels as they are" in " ".join(convert_program.parser().format_help().split())
    with pytest.raises(
        ConfigError, match=r"for compression_method 'joint', 'separate'.* or 'decoupled_rope'"
    ):
        CompressionConfig(compression_method=axes, d_latent=4)


def test_a_method_that_is_gone_is_named(axes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = convert_to_mla(tiny_model("llama"), 4.0, axes, **QUIET)
    (latent, *_) = plan_of(model).latents
    monkeypatch.delitem(LATENT_KINDS, axes)
    with pytest.raises(PlanError, match="method='axes' of layer 0 is unknown; one of joint, sep"):
        type(latent)(**{name: getattr(latent, name) for name in latent.__dataclass_fields__})
    with pytest.raises(ConfigError, match="'axes' is unknown; choose one of auto, joint"):
        CompressionConfig(compression_method=axes)


def test_a_metric_is_a_row_and_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Metric(name="doubled", words="twice the error", observer=f"{HERE}:DoubledMetric")
    monkeypatch.setitem(METRICS, row.name, row)
    losses = {}
    for metric in ("doubled", "activation"):
        model, _ = convert_to_mla(tiny_model("llama"), 4.0, metric=metric, **QUIET)
        losses[metric] = plan_of(model).predicted_loss
        assert plan_of(model).metric == metric
    assert losses["doubled"] == pytest.approx(2 * losses["activation"])


@pytest.mark.parametrize(
    "row", [*LATENT_KINDS.values(), *STATE_METHODS.values()], ids=lambda row: row.name
)
def test_rows_name_functions_that_exist(row) -> None:
    assert callable(row.function())


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].reads_text])
def test_rows_of_metrics_name_classes_that_exist(name: str) -> None:
    assert issubclass(METRICS[name].observer_class(), ActivationMetric)


def test_programs_offer_every_row() -> None:
    given = {action.dest: action.choices for action in convert_program.parser()._actions}
    assert tuple(given["compression_method"]) == choices(LATENT_KINDS)
    assert tuple(given["metric"]) == tuple(METRICS)
    assert tuple(given["state_method"]) == choices(STATE_METHODS)
