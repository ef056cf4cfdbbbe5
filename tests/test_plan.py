"""Plans of whole models add up, travel as JSON and print as tables."""

from __future__ import annotations

import json

import pytest

from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.plan import CompressionPlan
from tests.families.tiny_configs import CASES
from tests.models import pair


@pytest.mark.parametrize("case", ["llama", "zamba2", "gemma2", "bamba"])
def test_plan_of_a_model(case: str) -> None:
    pair_ = pair(case, "auto", ratio=4.0, metric="activation")
    plan, spec = pair_.plan, model_spec(pair_.source.config)
    assert CompressionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.source_bytes_per_token == spec.bytes_per_token
    assert plan.bytes_per_token == sum(r.get("stored B/token", 0) for r in plan.rows(spec))
    assert plan.compression_ratio >= 4.0
    assert plan.predicted_loss == pytest.approx(
        sum(row.get("predicted loss", 0.0) for row in plan.rows(spec))
    )
    assert f"{plan.source_bytes_per_token} -> {plan.bytes_per_token} bytes per token" in (
        plan.table(spec)
    )


@pytest.mark.parametrize("case", CASES)
def test_budget_is_hit_from_below_within_one_step(case: str) -> None:
    plan = pair(case, "auto", ratio=4.0, metric="activation").plan
    budget = plan.source_bytes_per_token / 4.0
    step = max(2 * len(latent.layer_ids) for latent in plan.latents)
    assert budget - step < plan.bytes_per_token <= budget
