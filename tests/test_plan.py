"""Plans add up, travel as JSON and print as tables."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.plan import ChannelRun, CompressionPlan, LatentPlan, format_table
from tests.families.tiny_configs import CASES
from tests.models import pair

LATENT = LatentPlan(
    layer_ids=(0, 3),
    method="joint",
    kv_lora_rank=10,
    key_rank=10,
    value_rank=10,
    read_mode="absorb",
    runs=(ChannelRun(channels=7, bits=16), ChannelRun(channels=3, bits=16)),
)


def test_bytes_per_token() -> None:
    assert LATENT.bytes_per_token == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_lora_rank": 11}, "do not add up to kv_lora_rank=11"),
        ({"key_rank": 11}, "key_rank=11 .*exceeds kv_lora_rank=10"),
        ({"value_rank": 12}, "value_rank=12 .*exceeds kv_lora_rank=10"),
        ({"read_mode": "guess"}, "read_mode='guess' is unknown; one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_contradictions(change: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        dataclasses.replace(LATENT, **change)


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


def test_table_aligns_records_with_different_keys() -> None:
    assert format_table([{"a": 1, "b": 0.5}, {"a": 22}]).splitlines() == [
        "|  a |   b |",
        "|---:|----:|",
        "|  1 | 0.5 |",
        "| 22 |     |",
    ]
