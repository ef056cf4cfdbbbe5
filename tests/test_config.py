"""Bad settings are refused, all of them at once, with a word on what to do."""

from __future__ import annotations

import math

import pytest

from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.methods import LATENT_KINDS, METRICS, choices

REFUSED = {
    "ratio-zero": ({"compression_ratio": 0}, "compression_ratio=0 must be a finite number >= 1"),
    "ratio-negative": ({"compression_ratio": -1}, "compression_ratio=-1 must be a finite"),
    "ratio-half": ({"compression_ratio": 0.5}, "0.5 must be .* >= 1 .*four times fewer"),
    "ratio-nan": ({"compression_ratio": math.nan}, "nan must be a finite number"),
    "ratio-inf": ({"compression_ratio": math.inf}, "inf must be a finite number"),
    "ratio-text": ({"compression_ratio": "4"}, "compression_ratio='4' is no number; give one"),
    "ratio-bool": ({"compression_ratio": True}, "compression_ratio=True is no number"),
    "method": ({"compression_method": "pca"}, "'pca' is unknown; choose one of auto, joint"),
    "metric": ({"metric": "hessian"}, "'hessian' is unknown; choose one of fisher, score"),
    "allocation": ({"rank_allocation": "greedy"}, "'greedy' is unknown; choose one of global"),
    "bits": ({"cache_bits": 3}, "cache_bits=3 is unknown; choose one of"),
    "rank-zero": (
        {"d_latent": 0, "compression_method": "joint"},
        "d_latent=0 must be a whole number >= 1",
    ),
    "rank-fraction": (
        {"d_latent": 2.5, "compression_method": "joint"},
        "d_latent=2.5 must be a whole number",
    ),
    "rank-and-ratio": (
        {"d_latent": 8, "compression_ratio": 2.0, "compression_method": "joint"},
        "d_latent=8 and compression_ratio=2.0 both fix the size; give one",
    ),
    "rank-without-method": ({"d_latent": 8}, "give compression_method 'joint', 'separate'"),
    "rotary-key-odd": (
        {"qk_rope_head_dim": 7, "compression_method": "decoupled_rope"},
        "qk_rope_head_dim=7 is odd, and channels rotate in pairs; give 8",
    ),
    "rotary-key-none": (
        {"qk_rope_head_dim": 0, "compression_method": "decoupled_rope"},
        "qk_rope_head_dim=0 must be a whole number >= 2",
    ),
    "rotary-key-of-others": (
        {"qk_rope_head_dim": 8, "compression_method": "joint"},
        "qk_rope_head_dim=8 is used by compression_method='decoupled_rope' only",
    ),
    "decoupling-without-gradients": (
        {"metric": "score", "compression_method": "decoupled_rope"},
        "metric='score' does not say what rotation is worth",
    ),
    "decoupling-coded": (
        {"cache_bits": 4, "compression_method": "decoupled_rope"},
        "'decoupled_rope' stores 16 bits only; leave cache_bits out",
    ),
    "damping-zero": ({"metric_damping": 0.0}, "metric_damping=0.0 must lie between 0 and 1"),
    "damping-text": ({"metric_damping": "a"}, "metric_damping='a' must lie between 0 and 1"),
    "damping-nan": ({"metric_damping": math.nan}, "metric_damping=nan must lie between"),
    "seed-unused": (
        {"seed": 1, "metric": "activation"},
        "seed=1 has no effect with .*'activation'",
    ),
    "damping-unused": (
        {"metric_damping": 0.1, "metric": "none"},
        "metric_damping=0.1 has no effect with metric='none', only with fisher and score",
    ),
    "objective": ({"objective": "size"}, "'size' is unknown; choose one of memory, speed, auto"),
    "device": (
        {"device_profile": "TPU", "objective": "speed"},
        "'TPU' is unknown; choose one of H200, H100, A100, CPU, or give BYTES_PER_SECOND",
    ),
    "device-none": ({"device_profile": None, "objective": "speed"}, "device_profile=None is unk"),
    "device-without-choice": (
        {"device_profile": "A100", "objective": "memory"},
        "device_profile='A100' is for choosing kinds of few-bit latents by speed",
    ),
    "device-with-method": (
        {"device_profile": "A100", "compression_method": "joint"},
        "device_profile='A100' is for choosing",
    ),
    "device-16-bit": ({"device_profile": "A100", "cache_bits": 16}, "is for choosing"),
    "objective-and-method": (
        {"objective": "speed", "compression_method": "joint"},
        "chooses the method by layer, so it cannot be given with compression_method='joint'",
    ),
    "rank-by-head": (
        {"compression_method": "rotate", "d_latent": 8},
        "d_latent and rank_allocation are for compression_method 'joint'",
    ),
    "labels": ({"fisher_labels": "mine"}, "'mine' is unknown; choose one of text, model"),
    "labels-unused": (
        {"fisher_labels": "model", "metric": "score"},
        "fisher_labels='model' has no effect with metric='score'",
    ),
    "hadamard-unused": ({"hadamard": True, "cache_bits": "fp8"}, "few-bit levels"),
    "group-without-xkv": (
        {"cross_layer_group_size": 2},
        "cross_layer_group_size=2 is used by compression_method='xkv' only, not by 'auto'",
    ),
    "skip-without-xkv": (
        {"xkv_skip_early_layers": 1, "compression_method": "joint"},
        "xkv_skip_early_layers=1 is used by .*'xkv' only, not by 'joint'; leave it out",
    ),
    "keep-without-xkv": (
        {"keep_early_layers_original": True, "compression_method": "separate"},
        "keep_early_layers_original=True is used by .*'xkv' only",
    ),
    "keep-nothing": (
        {"keep_early_layers_original": True, "compression_method": "xkv"},
        "needs xkv_skip_early_layers >= 1",
    ),
    "group-zero": (
        {"cross_layer_group_size": 0, "compression_method": "xkv"},
        "cross_layer_group_size=0 must be a whole number >= 1",
    ),
    "skip-negative": (
        {"xkv_skip_early_layers": -1, "compression_method": "xkv"},
        "xkv_skip_early_layers=-1 must be a whole number >= 0",
    ),
    "samples": ({"num_calibration_samples": 0}, "num_calibration_samples=0 must be a whole"),
    "length": ({"max_calibration_length": 1.5}, "max_calibration_length=1.5 must be a whole"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    values, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        CompressionConfig(**values)


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        CompressionConfig(compression_ratio=0, metric="x", cache_bits=3)
    for part in ("compression_ratio=0", "metric='x'", "cache_bits=3"):
        assert part in str(caught.value)


def test_config_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="compression_ratio"):
        CompressionConfig(compression_ratio=-2)


@pytest.mark.parametrize("method", choices(LATENT_KINDS))
@pytest.mark.parametrize("metric", METRICS)
def test_round_trip(method: str, metric: str) -> None:
    if method == "decoupled_rope" and metric != "fisher":
        pytest.skip("refused together")
    config = CompressionConfig(compression_method=method, metric=metric)
    assert CompressionConfig.from_dict(config.to_dict()) == config


def test_settings_of_a_newer_version() -> None:
    values = {**CompressionConfig().to_dict(), "novelty": 1}
    with pytest.raises(ConfigError, match="unknown settings novelty; a newer version"):
        CompressionConfig.from_dict(values)
