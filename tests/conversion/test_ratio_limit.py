"""Ratios that no plan reaches are refused before any text is read, with the highest there is."""

from __future__ import annotations

import re

import pytest

from cacheshrink_hybrid import convert_model
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.ratio_limit import least_state_bytes
from cacheshrink_hybrid.errors import ConfigError, PlanError
from cacheshrink_hybrid.families import model_spec
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids

SETTINGS = {
    "coded": {},
    "8 bits": {"cache_bits": 8},
    "fp8": {"cache_bits": "fp8"},
    "16 bits": {"cache_bits": 16, "compression_method": "joint"},
    "separate": {"cache_bits": 16, "compression_method": "separate"},
    "xkv": {"compression_method": "xkv", "cross_layer_group_size": 2},
    "uniform": {"rank_allocation": "uniform", "compression_method": "joint"},
    "early layers kept": {
        "compression_method": "xkv",
        "cross_layer_group_size": 1,
        "xkv_skip_early_layers": 1,
        "keep_early_layers_original": True,
    },
}


def no_text():
    """Calibration sequences that must not be read."""
    pytest.fail("calibration was begun")
    yield


@pytest.mark.parametrize("case", ["llama", "mistral-window", "zamba2"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_highest_ratio(settings: dict, case: str) -> None:
    config = CompressionConfig(compression_ratio=1e4, **settings)
    with pytest.raises(PlanError, match="at most") as caught:
        convert_model(tiny_model(case), config, no_text())
    (highest,) = re.findall(r"at most (\d+\.?\d*)", str(caught.value))
    config = CompressionConfig(compression_ratio=float(highest), **settings)
    plan = convert_model(tiny_model(case), config, calibration_ids(6))
    assert plan.compression_ratio >= float(highest)


UNREACHABLE = {
    "rank": (
        "llama",
        {"compression_method": "joint", "d_latent": 100_000},
        "d_latent=100000 exceeds the full rank 32",
    ),
    "rank apart": (
        "llama",
        {"compression_method": "separate", "d_latent": 17},
        "d_latent=17 exceeds the full rank 16",
    ),
    "rank of groups": (
        "llama",
        {"compression_method": "xkv", "d_latent": 17},
        "d_latent=17 exceeds the full rank 16",
    ),
    "budget": (
        "llama",
        {"budget_bytes": 10, "context_length": 100},
        "give a budget_bytes of at least that",
    ),
    "budget of a hybrid": (
        "granitemoehybrid",
        {"budget_bytes": 1100, "context_length": 100},
        "give a budget_bytes of at least that",
    ),
    "states": ("granitemoehybrid", {"state_ratio": 1000.0}, "give a state_ratio of less than"),
    "states alone": (
        "mamba2",
        {"state_ratio": 1000.0},
        "give a state_ratio of less than",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_refused_before_calibration(case: str, settings: dict, match: str) -> None:
    with pytest.raises(PlanError, match=match) as caught:
        convert_model(tiny_model(case), CompressionConfig(**settings), no_text())
    if "budget_bytes" in settings:
        assert "compression_ratio" not in str(caught.value)


@pytest.mark.parametrize("case", ["granitemoehybrid", "mamba2", "qwen3_next", "jamba", "zamba2"])
@pytest.mark.parametrize("method", ["auto", "prune"])
def test_least_states_are_a_bound(case: str, method: str) -> None:
    """What conversion stores at a high ratio is no less than what is said to be the least."""
    if case == "qwen3_next" and method == "prune":
        pytest.skip("delta nets have no channels to drop")
    model = tiny_model(case)
    spec = model_spec(model.config)
    ratio = {"compression_ratio": 1.0} if spec.attention_layers else {}
    config = CompressionConfig(**ratio, state_ratio=1.5, state_method=method, state_dtype="int8")
    plan = convert_model(model, config, calibration_ids(6))
    assert 0 < least_state_bytes(spec, config) <= plan.state_bytes


@pytest.mark.parametrize(
    "settings",
    [
        {"exact_window": 10**12},
        {"exact_window": 60, "exact_sinks": 4},
        {"exact_sinks": 64},
    ],
    ids=str,
)
def test_exact_tokens_beyond_all_positions(settings: dict) -> None:
    model = tiny_model("llama", max_position_embeddings=64)
    with pytest.raises(ConfigError, match=r"64 positions at 16 bits.*fewer than 64"):
        convert_model(model, CompressionConfig(**settings), no_text())
