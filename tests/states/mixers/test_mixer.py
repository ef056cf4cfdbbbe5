"""Selected state channels are folded into weights: same results, fewer bytes, nothing lost."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid import compression_disabled
from cacheshrink_hybrid.checkpoint.load import load_mla_model
from cacheshrink_hybrid.checkpoint.save import save_mla_model
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.conversion.statistics import model_statistics
from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.states.fit.planner import make_state_unit
from cacheshrink_hybrid.states.mixers.installation import install_mixer
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.families.tiny_configs import tiny_model
from tests.models import (
    Pair,
    calibration_ids,
    logits_in_pieces,
    logits_of,
    prefill_then_decode,
    random_ids,
)
from tests.tolerances import assert_same_logits, largest_difference

NUM_TOKENS, NUM_PREFILL = 31, 17
TWO_GROUPS = {
    "bamba": {"mamba_n_groups": 2},
    "falcon_h1": {"mamba_n_groups": 2, "ssm_multipliers": [0.8, 1.2, 0.7, 1.4, 0.9]},
    "granitemoehybrid": {"mamba_n_groups": 2},
    "nemotron_h": {"n_groups": 2},
    "zamba2": {"mamba_ngroups": 2},
}
MAMBA1 = ("jamba", "zamba", "mamba", "falcon_mamba")
FOLDED = [(case, method) for case in (*TWO_GROUPS, "mamba2") for method in ("select", "prune")]
FOLDED += [(case, "select") for case in MAMBA1]
every_folded = pytest.mark.parametrize(("case", "method"), FOLDED)


def source_of(case: str):
    """A model whose states say much about its logits."""
    model = tiny_model(case, **TWO_GROUPS.get(case, {}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv1d.weight" in name:
                parameter.mul_(4.0)
            elif name.endswith("x_proj_weight"):
                parameter.mul_(100.0)
            elif name.endswith(("dt_bias", "dt_proj.bias", "dt_proj_bias")):
                parameter.add_(1.5)
            elif name.endswith(".D"):
                parameter.mul_(0.2)
    return model


def settings_of(model, method: str, **settings) -> CompressionConfig:
    if model_spec(model.config).attention_layers:
        settings = {"compression_ratio": 1.0, "cache_bits": 16, **settings}
    settings = {
        "state_dtype": "float32",
        "replay_length": 1,
        "state_ratio": 2.0,
        "fisher_labels": "model",
        **settings,
    }
    return CompressionConfig(state_method=method, **settings)


@cache
def converted(case: str, method: str) -> tuple[Pair, list[Tensor]]:
    """A model with folded channels, and for each recurrent layer E = L R^T, (G, N, N)."""
    source = source_of(case)
    config = settings_of(source, method)
    statistics = model_statistics(source, config, calibration_ids())
    model = copy.deepcopy(source)
    plan = convert_model(model, config, statistics=statistics)
    layers = {layer.layer_idx: layer for layer in model_spec(source.config).state_layers}
    kept = []
    for state, found in zip(plan.states, statistics.states, strict=True):
        unit = make_state_unit(layers[state.layer_idx], found, config)
        pairs = [basis.pair(rank) for basis, rank in zip(unit.bases, state.ranks, strict=True)]
        kept.append(torch.stack([write @ read.T for write, read in pairs]).float())
    return Pair(source, model, plan), kept


def unfolded(source, kept: list[Tensor]):
    """The source with all its weights and states, read through E = L R^T: y = S E C."""
    model = copy.deepcopy(source)
    for layer, matrix in zip(model_spec(model.config).state_layers, kept, strict=True):
        module = model.get_submodule(layer.state.module_name)
        mixer = install_mixer(module, layer.state, None)
        scan = mixer.scan
        mixer.scan = lambda state, inputs, reads, scan=scan, matrix=matrix: scan(
            state, inputs, torch.einsum("gnk,btgk->btgn", matrix, reads)
        )
    return model


@every_folded
def test_folded_weights_give_what_full_ones_give(case: str, method: str) -> None:
    both, kept = converted(case, method)
    ids = random_ids(2, NUM_TOKENS)
    expected = logits_of(unfolded(both.source, kept), ids)
    assert largest_difference(expected, logits_of(both.source, ids)) > 2e-3  # channels did go
    assert_same_logits(logits_of(both.converted, ids), expected)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert_same_logits(logits_in_pieces(both.converted, ids, pieces), expected)


def test_groups_of_different_ranks_are_among_them() -> None:
    ranks = [
        state.ranks for case in TWO_GROUPS for state in converted(case, "select")[0].plan.states
    ]
    assert any(len(set(values)) > 1 for values in ranks)


@every_folded
def test_weights_and_convolution_shrink(case: str, method: str) -> None:
    both, _ = converted(case, method)
    assert any(min(state.ranks) < state.state_size for state in both.plan.states)
    mixers = [m for m in both.converted.modules() if isinstance(m, RecurrentMixer)]
    for mixer, state, layer in zip(
        mixers, both.plan.states, model_spec(both.source.config).state_layers, strict=True
    ):
        before = both.source.get_submodule(layer.state.module_name)
        dropped = sum(layer.state.state_size - rank for rank in state.ranks)
        if not dropped:  # this layer kept all of its channels
            continue
        assert mixer.state_write is None or case in ("jamba", "falcon_mamba")
        if state.kind == "mamba":
            assert mixer.A_log.shape[-1] == state.width < before.A_log.shape[-1]
            assert state.conv_channels == layer.state.conv_channels
            if case in ("mamba", "zamba"):  # the others' norms need all of B and C
                name = "x_proj.weight" if case == "mamba" else "x_proj_weight"
                narrow, wide = (module.get_parameter(name).shape for module in (mixer, before))
                assert narrow[-2] == wide[-2] - 2 * (layer.state.state_size - state.width)
            continue
        columns = dropped * {"select": 1, "prune": 2}[method]
        assert state.conv_channels == layer.state.conv_channels - columns
        assert mixer.conv1d.weight.shape[0] == mixer.conv1d.groups == state.conv_channels
        assert mixer.in_proj.weight.shape[0] == before.in_proj.weight.shape[0] - columns
        assert (mixer.state_read is None) == (method == "prune")


@every_folded
def test_checkpoints(case: str, method: str, tmp_path: Path) -> None:
    both, _ = converted(case, method)
    save_mla_model(both.converted, None, tmp_path / "saved")
    loaded, _ = load_mla_model(tmp_path / "saved")
    ids = random_ids(2, 20)
    assert torch.equal(logits_of(loaded, ids), logits_of(both.converted, ids))


@pytest.mark.parametrize("case", ["falcon_h1", "zamba", "mamba2"])
def test_the_source_can_be_kept_beside(case: str, tmp_path: Path) -> None:
    source = source_of(case)
    model = copy.deepcopy(source)
    config = settings_of(source, "select", store_original_weights=True)
    convert_model(model, config, calibration_ids())
    ids = random_ids(2, 20)
    before = logits_of(model, ids)
    with compression_disabled(model):
        assert torch.equal(logits_of(model, ids), logits_of(source, ids))
    assert torch.equal(logits_of(model, ids), before)
    save_mla_model(model, None, tmp_path / "saved")
    loaded, _ = load_mla_model(tmp_path / "saved")
    assert torch.equal(logits_of(loaded, ids), before)
    assert not any("source_weights" in name for name in loaded.state_dict())
    with pytest.raises(UnsupportedModelError, match="store_original"), compression_disabled(loaded):
        pass


@pytest.mark.parametrize("method", ["select", "prune"])
def test_convolution_bytes_are_counted(method: str) -> None:
    """With the same bytes, dropping convolution channels leaves more of the state."""
    plan = plan_of(converted("granitemoehybrid", method)[0].converted)
    assert plan.state_ratio >= 2.0
    for state in plan.states:
        assert state.bytes_per_sequence == state.recurrent_bytes + 6 * state.conv_channels
