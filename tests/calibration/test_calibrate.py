"""Calibration reads a model and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cacheshrink_hybrid import precision
from cacheshrink_hybrid.calibration.calibrate import calibrate, weight_statistics
from cacheshrink_hybrid.errors import CalibrationError
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.fit.metrics import Labels
from cacheshrink_hybrid.latents.fit.statistics import LatentStatistics
from cacheshrink_hybrid.methods import METRICS
from tests.families.tiny_configs import CASES, tiny_model
from tests.models import calibration_ids, logits_of, random_ids, unchanged

every_metric = pytest.mark.parametrize("metric", [m for m in METRICS if METRICS[m].reads_text])


def run(model, metric: str, sequences=None, seed: int = 0):
    parts = read_attention(model, model_spec(model.config))
    given = calibration_ids() if sequences is None else sequences
    return calibrate(model, parts, given, metric=metric, labels=Labels("model", seed))


@every_metric
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "zamba2", "qwen3_next"])
def test_model_is_left_as_it_was(case: str, training: bool, metric: str) -> None:
    model = tiny_model(case).train(training)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 != 0)
    expected = logits_of(model.eval(), random_ids(1, 9))
    model.train(training)
    with unchanged(model):
        run(model, metric)
    assert torch.equal(logits_of(model.eval(), random_ids(1, 9)), expected)


def failing_sequences() -> Iterator[torch.Tensor]:
    yield from calibration_ids(2)
    raise KeyboardInterrupt


@every_metric
def test_model_is_left_as_it_was_after_an_interrupt(metric: str) -> None:
    model = tiny_model("llama").train()
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        run(model, metric, failing_sequences())


def test_a_forward_of_the_users_own_survives() -> None:
    """Other libraries put a function of their own in a layer's place of `forward`."""
    model = tiny_model("llama")
    layer = model.model.layers[1]
    original, calls = layer.forward, []

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    layer.forward = counting
    run(model, "activation")
    assert layer.forward is counting
    assert calls


def test_mixed_modes_of_modules_survive() -> None:
    """A frozen part that was put into evaluation mode stays there."""
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    with unchanged(model):
        run(model, "activation")


def test_global_random_state_is_not_drawn_from() -> None:
    model = tiny_model("llama")
    state = torch.random.get_rng_state()
    run(model, "fisher")
    assert torch.equal(torch.random.get_rng_state(), state)


@every_metric
def test_same_seed_same_bits(metric: str) -> None:
    model = tiny_model("llama")
    for one, other in zip(run(model, metric), run(model, metric), strict=True):
        for name in ("mean", "covariance", "metric"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_seed_chooses_the_labels() -> None:
    model = tiny_model("llama")
    one, other = run(model, "fisher", seed=0)[0], run(model, "fisher", seed=1)[0]
    assert torch.equal(one.covariance, other.covariance)
    assert not torch.equal(one.metric, other.metric)


@every_metric
def test_tokens_are_counted_once(metric: str) -> None:
    """Although a checkpointed layer runs a second time on the way back."""
    for case, layers in (("llama", 1), ("zamba", 2)):
        for statistics in run(tiny_model(case), metric, calibration_ids(3, 10)):
            assert statistics.num_tokens == 3 * 10 * layers


@pytest.mark.parametrize("case", CASES)
def test_covariance_and_metric_fit_the_weights(case: str) -> None:
    model = tiny_model(case)
    parts = read_attention(model, model_spec(model.config))
    for part, statistics in zip(parts, run(model, "fisher"), strict=True):
        shape = (part.width, part.width)
        for matrix in (statistics.covariance, statistics.metric):
            assert matrix.shape == shape
            assert matrix.dtype == torch.float64
            assert float(torch.linalg.eigvalsh(matrix)[-1]) > 0


def test_sequences_of_sinks_alone() -> None:
    model = tiny_model("llama")
    parts = read_attention(model, model_spec(model.config))
    with pytest.raises(CalibrationError, match=r"no longer than the 4 first tokens.*give longer"):
        calibrate(model, parts, calibration_ids(2, 4), metric="fisher", sinks=[4] * len(parts))


def test_no_tokens() -> None:
    with pytest.raises(CalibrationError, match="no calibration tokens were given; pass"):
        run(tiny_model("llama"), "fisher", [])


@every_metric
def test_numbers_that_are_not_finite(metric: str) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 4] = float("inf")
    with unchanged(model), pytest.raises(CalibrationError, match="not finite after"):
        run(model, metric)


def test_weights_alone() -> None:
    model = tiny_model("llama-biases")
    part = read_attention(model, model_spec(model.config))[0]
    statistics = weight_statistics(part)
    attention = model.model.layers[0].self_attn
    weights = torch.cat([attention.k_proj.weight, attention.v_proj.weight]).detach().double()
    biases = torch.cat([attention.k_proj.bias, attention.v_proj.bias]).detach().double()
    assert torch.equal(statistics.covariance, weights @ weights.T)
    assert torch.equal(statistics.mean, biases)
    assert torch.equal(statistics.metric, torch.eye(32, dtype=torch.float64))


@pytest.mark.usefixtures("float32_products")
def test_first_tokens_are_told_apart_with_what_unrotated_keys_cost() -> None:
    """Together with the others they are what calibration finds otherwise."""
    model = tiny_model("smollm3")
    parts = read_attention(model, model_spec(model.config))
    whole, split = (
        calibrate(model, parts, calibration_ids(3), metric="fisher", split=split)
        for split in (False, True)
    )
    for part, one, apart in zip(parts, whole, split, strict=True):
        first, width = apart.first, part.width
        assert first is not None and one.first is None and one.split_metric is None
        assert apart.num_tokens == one.num_tokens
        assert first.share == 1 / 24
        metric = apart.metric if apart.split_metric is None else apart.split_metric
        assert (apart.split_metric is None) == (part.rotary is None)
        torch.testing.assert_close(metric[:width, :width], apart.metric)
        for known, of_first, of_others in (
            (one.metric, first.metric[:width, :width], apart.metric),
            (_second(one.covariance, one.mean), first.second_moment, _second_of(apart)),
            (one.mean, first.mean, apart.mean),
        ):
            both = first.share * of_first + (1 - first.share) * of_others
            torch.testing.assert_close(both, known)


def _second(covariance: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return covariance + torch.outer(mean, mean)


def _second_of(statistics: LatentStatistics) -> torch.Tensor:
    return _second(statistics.covariance, statistics.mean)


@pytest.mark.parametrize("split", [False, True])
def test_keys_that_are_to_be_split_are_calibrated_in_float32(
    split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding chose other frequencies to rotate, where the CPU multiplies bfloat16 faster."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    model, found = tiny_model("llama"), list[bool]()
    parts = read_attention(model, model_spec(model.config))
    model.register_forward_pre_hook(lambda *_: found.append(torch.is_autocast_enabled("cpu")))
    calibrate(model, parts, calibration_ids(), metric="fisher", split=split)
    assert found and set(found) == {not split}
