"""Moments of states against their definition, token by token."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.calibration.calibrate import calibrate
from cacheshrink_hybrid.errors import CalibrationError
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.linalg import check_positive_semidefinite
from cacheshrink_hybrid.states.fit.observe import StateCalibration
from cacheshrink_hybrid.states.mixers.installation import observed_mixers
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, random_ids, unchanged

CASES = ["granitemoehybrid", "bamba", "qwen3_next", "jamba", "zamba"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_a_gradient_reads_from_a_state(case: str) -> None:
    """u_t = S_t^T g_t, with the states S_t found by scanning to each token."""
    model = tiny_model(case)
    layer = model_spec(model.config).state_layers[0]
    mixers = [(model.get_submodule(layer.state.module_name), layer.state)]
    seen = []
    with observed_mixers(mixers, lambda *pass_: seen.append(pass_)), torch.no_grad():
        model(random_ids(1, 70))
        mixer, inputs, reads, y = seen[0]
        gradient = torch.randn_like(y)
        passes = list(mixer.passes(inputs, reads, gradient))
        costs = torch.cat([costs for costs, *_ in passes], dim=1)
        for t in (0, 5, 63, 64, 69):
            _, state = mixer.scan(None, [x[:, : t + 1] for x in inputs], reads[:, :0])
            expected = torch.einsum("bmp,bmpn->bmn", gradient[:, t], state)
            torch.testing.assert_close(costs[:, t], expected, rtol=1e-3, atol=1e-5)
        last = passes[-1][1]
        _, state = mixer.scan(None, inputs, reads[:, :0])
        torch.testing.assert_close(last, state, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["fisher", "score", "activation"])
@pytest.mark.parametrize("case", CASES)
def test_calibration_leaves_the_model_as_it_was(case: str, metric: str) -> None:
    model = tiny_model(case)
    spec = model_spec(model.config)
    with unchanged(model):
        states = StateCalibration(model, spec, metric)
        parts = read_attention(model, spec)
        calibrate(model, parts, calibration_ids(2), metric=metric, states=states)
    for layer, found in zip(spec.state_layers, states.statistics(), strict=True):
        state = layer.state
        assert found.num_tokens == sum(ids.numel() for ids in calibration_ids(2))
        assert found.reads.shape == (state.num_groups, state.state_size, state.state_size)
        assert found.states.shape[0] == len(found.memory) == state.num_heads
        for moment in (*found.reads, *found.costs, *found.states):
            check_positive_semidefinite(moment, "a moment")
            assert torch.linalg.eigvalsh(moment)[0] > -1e-6 * moment.diagonal().max()
        assert torch.all(found.memory > 0)


@pytest.mark.slow
@pytest.mark.usefixtures("float32_products")
def test_states_do_not_change_what_is_found_for_keys_and_values() -> None:
    model = tiny_model("granitemoehybrid")
    spec = model_spec(model.config)
    alone, beside = (
        calibrate(
            model, read_attention(model, spec), calibration_ids(2), metric="fisher", states=states
        )
        for states in (None, StateCalibration(model, spec, "fisher"))
    )
    torch.testing.assert_close(alone[0].metric, beside[0].metric, rtol=1e-3, atol=1e-9)


def test_no_tokens() -> None:
    model = tiny_model("granitemoehybrid")
    with pytest.raises(CalibrationError, match="no calibration tokens"):
        StateCalibration(model, model_spec(model.config), "fisher").statistics()
