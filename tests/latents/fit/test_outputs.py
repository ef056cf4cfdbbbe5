"""Output projections of compressed attention, fitted to what its heads give."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cacheshrink_hybrid import compression_disabled, convert_model
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.statistics import model_statistics
from cacheshrink_hybrid.latents.fit import outputs
from cacheshrink_hybrid.latents.fit.outputs import OutputMoments
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, logits_of, random_ids
from tests.tolerances import assert_same_logits

CONFIG = CompressionConfig(
    compression_ratio=2.0, compression_method="decoupled_rope", cache_bits=16
)


def _converted(source: PreTrainedModel, config: CompressionConfig = CONFIG) -> PreTrainedModel:
    model = copy.deepcopy(source)
    convert_model(model, config, calibration_ids())
    return model


def _projections(model: PreTrainedModel) -> list[nn.Linear]:
    return [layer.self_attn.o_proj for layer in model.model.layers]


def _added_squares(model: PreTrainedModel, source: PreTrainedModel, ids: Tensor) -> list[float]:
    """Squared errors of each attention's output for the inputs that the source gives it."""
    found: list[float] = []
    twin = copy.deepcopy(source)
    for layer, other in zip(twin.model.layers, model.model.layers, strict=True):

        def hook(module: nn.Module, args: tuple, kwargs: dict, due, other=other) -> None:
            given, _ = other.self_attn(*args, **kwargs)
            found.append(float((given - due[0]).square().sum()))

        layer.self_attn.register_forward_hook(hook, with_kwargs=True)
    logits_of(twin, ids)
    return found


def test_weights_are_those_of_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 5, generator=generator).double()
    moments = OutputMoments(weight)
    given, due = torch.randn(40, 5, generator=generator), torch.randn(40, 3, generator=generator)
    moments.add(given[None, :25], due[None, :25])
    moments.add(given[None, 25:], due[None, 25:])
    # Five further tokens, white and as long as the others, that lose nothing.
    white = torch.eye(5).double() * given.double().square().sum(1).mean().sqrt()
    inputs = torch.cat([given.double(), white])
    expected = torch.linalg.lstsq(inputs, torch.cat([due.double(), white @ weight.T])).solution.T
    torch.testing.assert_close(moments.fitted(), expected, rtol=1e-9, atol=1e-9)


def test_every_layer_comes_nearer_to_its_source() -> None:
    source = tiny_model("llama")
    statistics = model_statistics(source, CONFIG, calibration_ids())
    assert statistics.sequences
    fitted, kept = copy.deepcopy(source), copy.deepcopy(source)
    convert_model(fitted, CONFIG, statistics=statistics)
    convert_model(kept, CONFIG, statistics=replace(statistics, sequences=()))
    ids = calibration_ids()[0]
    with_fit, without = (_added_squares(model, source, ids) for model in (fitted, kept))
    assert all(one < other for one, other in zip(with_fit, without, strict=True))


def test_nothing_changes_where_nothing_is_lost() -> None:
    source = tiny_model("llama")
    whole = CompressionConfig(compression_ratio=1.0, compression_method="decoupled_rope")
    model = _converted(source, whole)
    for one, other in zip(_projections(model), _projections(source), strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-5)


def test_other_kinds_keep_the_projections_of_their_source() -> None:
    source = tiny_model("llama")
    model = _converted(source, CompressionConfig(compression_ratio=4.0))
    for one, other in zip(_projections(model), _projections(source), strict=True):
        assert torch.equal(one.weight, other.weight)


def test_the_source_can_be_switched_back_to() -> None:
    source = tiny_model("llama")
    config = CompressionConfig(
        compression_ratio=2.0,
        compression_method="decoupled_rope",
        cache_bits=16,
        store_original_weights=True,
    )
    model, ids = _converted(source, config), random_ids(2, 20)
    assert not torch.equal(_projections(model)[0].weight, _projections(source)[0].weight)
    before = logits_of(model, ids)
    with compression_disabled(model):
        assert_same_logits(logits_of(model, ids), logits_of(source, ids))
    assert torch.equal(logits_of(model, ids), before)


def test_wide_models_take_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_model("llama")
    at_once = _converted(source)
    monkeypatch.setattr(outputs, "MOMENT_BYTES", 1)
    one_by_one = _converted(source)
    for one, other in zip(_projections(one_by_one), _projections(at_once), strict=True):
        assert torch.equal(one.weight, other.weight)
