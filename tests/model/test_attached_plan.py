"""A converted model carries its plan, and a source has none."""

from __future__ import annotations

import copy

import pytest

from cacheshrink_hybrid import CompressionPlan, plan_of
from cacheshrink_hybrid.errors import UnsupportedModelError
from tests.families.tiny_configs import tiny_model
from tests.models import pair


def test_source_has_no_plan() -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM is not converted; run"):
        plan_of(tiny_model("llama"))


def test_plan_travels_in_copies() -> None:
    converted = pair("llama", "auto", ratio=4.0).converted
    plan = plan_of(converted)
    assert isinstance(plan, CompressionPlan)
    assert plan.compression_ratio >= 4.0
    assert plan_of(copy.deepcopy(converted)) == plan
