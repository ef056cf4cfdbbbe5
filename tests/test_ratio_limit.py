"""Ratios that no plan reaches are refused before any text is read, with the highest there is."""

from __future__ import annotations

import re

import pytest

from cacheshrink_hybrid import convert_model
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.errors import PlanError
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids

SETTINGS = {
    "coded": {},
    "8 bits": {"cache_bits": 8},
    "fp8": {"cache_bits": "fp8"},
    "token scales": {"scales": "token"},
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
