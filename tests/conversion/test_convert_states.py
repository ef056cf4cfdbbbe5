"""Conversion of recurrent states: budgets, refusals, checkpoints, models without attention."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid.checkpoint.load import load_mla_model
from cacheshrink_hybrid.checkpoint.save import save_mla_model
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model, convert_to_mla
from cacheshrink_hybrid.errors import ConfigError, PlanError, UnsupportedModelError
from cacheshrink_hybrid.evaluation.memory import measure_cache_memory
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.model.attached_plan import plan_of, set_state_plans
from cacheshrink_hybrid.plan import CompressionPlan
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.families.tiny_configs import RECURRENT_CASES, tiny_model
from tests.models import calibration_ids, converted_copy, logits_of, random_ids, unchanged
from tests.tolerances import assert_same_logits

HYBRIDS = ["granitemoehybrid", "qwen3_next", "jamba"]


@pytest.mark.parametrize("ratio", [1.5, 2.0, 2.5])
@pytest.mark.parametrize(
    ("case", "method"),
    [(case, "auto") for case in (*HYBRIDS, *RECURRENT_CASES)]
    + [("granitemoehybrid", "select"), ("granitemoehybrid", "prune"), ("mamba2", "prune")],
)
def test_plan_keeps_its_budget_and_live_bytes_are_the_plan_s(
    case: str, method: str, ratio: float
) -> None:
    model = converted_copy(tiny_model(case), state_ratio=ratio, state_method=method)
    plan = plan_of(model)
    spec = model_spec(model.config)
    assert plan.source_state_bytes == spec.bytes_per_sequence
    assert plan.state_ratio >= ratio
    assert len(plan.states) == len(spec.state_layers)
    for values in measure_cache_memory(model, [40], 2)["per_sequence_length"].values():
        assert values["state_bytes"] == values["expected_state_bytes"] == 2 * plan.state_bytes
    assert CompressionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    table = plan.table(spec)
    assert f"{plan.source_state_bytes} -> {plan.state_bytes} bytes of state" in table


def test_codes_can_change_after_a_conversion_and_ranks_cannot() -> None:
    model = converted_copy(tiny_model("granitemoehybrid"), state_ratio=2.0, state_dtype="int8")
    states = plan_of(model).states
    mixers = [module for module in model.modules() if isinstance(module, RecurrentMixer)]
    assert not any(mixer.state_layout().codec.lossless for mixer in mixers)
    exact = [
        replace(state, segments=tuple(replace(part, code="float32") for part in state.segments))
        for state in states
    ]
    set_state_plans(model, exact)
    assert all(mixer.state_layout().codec.lossless for mixer in mixers)
    assert plan_of(model).states == tuple(exact)
    other = [replace(state, ranks=tuple(rank + 1 for rank in state.ranks)) for state in exact]
    with pytest.raises(PlanError, match="only codes and replay lengths can change"):
        set_state_plans(model, other)


@pytest.mark.parametrize("case", HYBRIDS)
def test_checkpoints(case: str, tmp_path: Path) -> None:
    model = converted_copy(tiny_model(case), state_ratio=2.0, state_dtype="int8", replay_length=2)
    save_mla_model(model, None, tmp_path / "saved")
    loaded, _ = load_mla_model(tmp_path / "saved")
    assert plan_of(loaded) == plan_of(model)
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == frozen
    ids = random_ids(2, 20)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    assert loaded._is_stateful is False


def test_a_ratio_of_one_leaves_recurrent_layers_alone() -> None:
    plan = plan_of(converted_copy(tiny_model("granitemoehybrid")))
    assert plan.states == ()
    assert plan.state_bytes == plan.source_state_bytes == plan.kept_state_bytes


def test_narrower_states_lose_more_and_the_oblique_basis_loses_least() -> None:
    source = tiny_model("granitemoehybrid")
    losses = {
        method: [
            sum(
                state.predicted_loss
                for state in plan_of(
                    converted_copy(
                        source,
                        state_ratio=ratio,
                        state_dtype="float32",
                        state_method=method,
                        replay_length=1,
                    )
                ).states
            )
            for ratio in (1.2, 1.5, 2.0)
        ]
        for method in ("oblique", "select", "prune", "principal")
    }
    for values in losses.values():
        assert values == sorted(values)
    for method in ("select", "prune", "principal"):
        assert all(a <= b for a, b in zip(losses["oblique"], losses[method], strict=True))


@pytest.mark.parametrize("model_type", ["mamba2", "mamba", "falcon_mamba"])
def test_models_without_attention(model_type: str) -> None:
    source = tiny_model(model_type)
    ids = random_ids(2, 20)
    expected = logits_of(source, ids)
    exact, narrow = copy.deepcopy(source), copy.deepcopy(source)
    convert_model(exact, CompressionConfig(state_dtype="float32"), calibration_ids())
    assert_same_logits(logits_of(exact, ids), expected)
    settings = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(exact.generate(ids, **settings), source.generate(ids, **settings))
    plan = convert_model(narrow, CompressionConfig(state_ratio=2.0), calibration_ids())
    assert plan.state_ratio >= 2
    assert plan.compression_ratio == 1
    narrow.generate(ids, **settings)
    with pytest.raises(UnsupportedModelError, match="give state_ratio"):
        convert_model(copy.deepcopy(source), CompressionConfig(), calibration_ids())
    with pytest.raises(ConfigError, match="has no use for this"):
        config = CompressionConfig(compression_ratio=2.0, state_ratio=2.0)
        convert_model(copy.deepcopy(source), config, calibration_ids())


def test_one_budget_for_both_memories() -> None:
    source = tiny_model("granitemoehybrid")
    spec = model_spec(source.config)
    length = 64
    total = spec.kv_bytes(length) + spec.bytes_per_sequence
    budget = math.ceil(total / 2)
    model = copy.deepcopy(source)
    config = CompressionConfig(budget_bytes=budget, context_length=length, cache_bits=16)
    plan = convert_model(model, config, calibration_ids())
    assert plan.bytes_at(spec, length) == plan.bytes_per_token * length + plan.state_bytes <= budget
    assert plan.state_bytes < spec.bytes_per_sequence
    with unchanged(source), pytest.raises(PlanError, match="give a budget_bytes of at least that"):
        tiny = CompressionConfig(budget_bytes=100, context_length=length)
        convert_model(source, tiny, calibration_ids())


@pytest.mark.parametrize(
    ("case", "length", "share", "settings"),
    [
        ("lfm2", 16, 0.6, {}),
        ("gpt_oss", 100, 0.25, {"cache_bits": 8, "exact_sinks": 4, "exact_window": 6}),
    ],
    ids=["states that are kept", "windows and exact tokens"],
)
def test_a_budget_counts_everything_that_is_stored(
    case: str, length: int, share: float, settings: dict
) -> None:
    model = copy.deepcopy(tiny_model(case))
    spec = model_spec(model.config)
    budget = math.ceil(share * (spec.kv_bytes(length) + spec.bytes_per_sequence))
    config = CompressionConfig(budget_bytes=budget, context_length=length, **settings)
    plan = convert_model(model, config, calibration_ids())
    assert 0.75 * budget < plan.bytes_at(spec, length) <= budget
    report = measure_cache_memory(model, [length])["per_sequence_length"][length]
    width = torch.finfo(model.dtype).bits // 16
    kept = plan.kept_state_bytes * (width - 1)  # counted at 16 bits
    assert report["total_bytes"] <= plan.bytes_at(spec, length) + kept


def test_codes_alone_need_no_text() -> None:
    source = tiny_model("granitemoehybrid")
    model, _ = convert_to_mla(
        copy.deepcopy(source), 1.0, use_calibration=False, state_dtype="float16", verbose=False
    )
    assert {state.method for state in plan_of(model).states} == {"full"}
    with unchanged(source), pytest.raises(PlanError, match="or calibrate"):
        convert_to_mla(source, 1.0, use_calibration=False, state_ratio=4.0, verbose=False)


@pytest.mark.parametrize(
    ("case", "settings", "error", "message"),
    [
        ("llama", {"state_ratio": 2.0}, PlanError, "has none that can be compressed"),
        ("lfm2", {"state_ratio": 2.0}, PlanError, "has none that can be compressed"),
        ("granitemoehybrid", {"state_ratio": 90.0}, PlanError, "a state_ratio of less"),
        (
            "qwen3_next",
            {"state_ratio": 2.0, "state_method": "oblique"},
            PlanError,
            "commutes with orthonormal only",
        ),
        ("jamba", {"state_ratio": 2.0, "state_method": "oblique"}, PlanError, "commutes with"),
    ],
)
def test_refusals_change_nothing(case: str, settings: dict, error: type, message: str) -> None:
    source = tiny_model(case)
    config = CompressionConfig(compression_ratio=1.0, **settings)
    with unchanged(source), pytest.raises(error, match=message):
        convert_model(source, config, calibration_ids())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state_ratio": 0.5}, "state_ratio=0.5 must be a finite number >= 1"),
        ({"state_ratio": True}, "state_ratio=True"),
        ({"state_dtype": "int4"}, "state_dtype='int4' is unknown"),
        ({"replay_length": 4}, "replay_length=4 has no use"),
        ({"state_method": "select"}, "state_method='select' has no use"),
        ({"state_ratio": 2.0, "replay_length": 0}, "replay_length=0 must be a whole number"),
        ({"budget_bytes": 10}, "go together"),
        ({"budget_bytes": 10, "context_length": 5, "state_ratio": 2.0}, "both fix the size"),
        ({"budget_bytes": 10, "context_length": 5, "compression_ratio": 2.0}, "both fix the size"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CompressionConfig(**settings)
