"""What vLLM may be asked for with a converted model, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.plan import CompressionPlan
from cacheshrink_hybrid.vllm.support import (
    TESTED,
    UNTESTED,
    Deployment,
    refuse_unsupported,
    told_bytes,
)
from tests.models import pair

HERE = Deployment(release=TESTED[0].release, device=TESTED[0].device)
STAGES = (range(2), range(2, 3))


def _refused(deployment: Deployment, case: str = "llama", **settings: Any) -> str:
    """The message of a refusal."""
    found = pair(case, **settings)
    with pytest.raises(NotSupportedError) as refusal:
        refuse_unsupported(deployment, found.plan, model_spec(found.source.config))
    return str(refusal.value)


@pytest.mark.parametrize("case", ["llama", "qwen3"])
@pytest.mark.parametrize("row", TESTED)
def test_what_was_tested_is_served(case: str, row: Any) -> None:
    found = pair(case)
    for heads, layers in row.parallel:
        deployment = Deployment(
            release=row.release,
            device=row.device,
            tensor_parallel=heads,
            stages=STAGES if layers == 2 else (),
        )
        refuse_unsupported(deployment, found.plan, model_spec(found.source.config))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cache_dtype": "fp8"}, "kv_cache_dtype='fp8' would code rows a second time"),
        ({"quantization": "awq"}, "quantization='awq'"),
        ({"stages": (range(3), range(3, 3))}, "leaves a process without layers; give at most 3"),
        ({"context_parallel": 2}, "context_parallel_size=2"),
        ({"speculative": True}, "speculative_config"),
        ({"adapters": True}, "enable_lora"),
        ({"connector": "LMCacheConnectorV1"}, "kv_connector='LMCacheConnectorV1'"),
    ],
)
def test_options_are_refused(changed: dict[str, Any], words: str) -> None:
    assert words in _refused(replace(HERE, **changed))


def test_latents_of_the_source_are_refused() -> None:
    assert "'deepseek_v3' caches latents of its own" in _refused(HERE, "deepseek_v3")


@pytest.mark.parametrize(
    "changed",
    [
        {"release": "0.31.0"},
        {"device": "cuda"},
        {"tensor_parallel": 4},
        {"stages": (range(1), range(1, 2), range(2, 3))},
        {"tensor_parallel": 2, "stages": (range(2), range(2, 3))},
    ],
)
def test_what_was_not_tested_needs_a_wish(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = replace(HERE, **changed)
    found = pair("llama")
    spec = model_spec(found.source.config)
    heads = spec.attention_layers[0].attention
    assert heads is not None
    assert f"set {UNTESTED}=1 to try" in _refused(deployment)
    monkeypatch.setenv(UNTESTED, "1")
    if heads.num_key_value_heads % deployment.tensor_parallel:
        assert "does not divide" in _refused(deployment)
    else:
        refuse_unsupported(deployment, found.plan, spec)


def test_builds_of_a_release_count_as_it() -> None:
    found = pair("llama")
    deployment = replace(HERE, release=HERE.release + "+cpu")
    refuse_unsupported(deployment, found.plan, model_spec(found.source.config))


def test_a_wish_does_not_admit_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNTESTED, "1")
    assert "kv_cache_dtype" in _refused(replace(HERE, cache_dtype="fp8"))


def test_exact_tokens_need_blocks_of_their_own() -> None:
    exact = {"ratio": 4.0, "cache_bits": "auto", "exact_sinks": 2, "exact_window": 5}
    found = pair("llama", **exact)
    refuse_unsupported(HERE, found.plan, model_spec(found.source.config))
    message = _refused(replace(HERE, drops_windows=False), **exact)
    assert "disable_hybrid_kv_cache_manager" in message
    found = pair("llama", ratio=4.0, cache_bits="auto")
    refuse_unsupported(
        replace(HERE, drops_windows=False), found.plan, model_spec(found.source.config)
    )


def test_states_need_blocks_of_their_own() -> None:
    message = _refused(replace(HERE, drops_windows=False), "granitemoehybrid")
    assert "recurrent states are in blocks of their own" in message


def test_recurrent_layers_are_tested_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pair("granitemoehybrid")
    spec = model_spec(found.source.config)
    for recurrent in (True, False):
        rows = tuple(replace(row, recurrent=recurrent) for row in TESTED)
        monkeypatch.setattr("cacheshrink_hybrid.vllm.support.TESTED", rows)
        if recurrent:
            refuse_unsupported(HERE, found.plan, spec)
        else:
            message = _refused(HERE, "granitemoehybrid")
            assert "and recurrent layers was not tested" in message
            assert "size=2, without recurrent layers; use that" in message
    monkeypatch.setenv(UNTESTED, "1")
    refuse_unsupported(HERE, found.plan, spec)


def test_states_that_vllm_does_not_read_are_refused() -> None:
    message = _refused(HERE, "granitemoehybrid", state_ratio=2.0)
    assert "states of 2 recurrent layers (layer 0 first) are cut or coded" in message
    assert "convert without state_ratio and state_dtype" in message


def test_recurrent_heads_that_are_not_divided_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that all heads of Mamba-2 share is on every device, groups of delta nets are not."""
    monkeypatch.setenv(UNTESTED, "1")
    found = pair("granitemoehybrid")
    spec = model_spec(found.source.config)
    refuse_unsupported(replace(HERE, tensor_parallel=2), found.plan, spec)
    message = _refused(replace(HERE, tensor_parallel=3), "granitemoehybrid")
    assert "does not divide 4 heads in 1 groups of recurrent layer 0" in message
    message = _refused(replace(HERE, tensor_parallel=4), "qwen3_next")
    assert "does not divide 4 heads in 2 groups of recurrent layer 0" in message


def test_shared_bases_are_refused() -> None:
    assert "another method than 'xkv'" in _refused(HERE, method="xkv")


def test_heads_that_are_not_divided_are_refused() -> None:
    message = _refused(replace(HERE, tensor_parallel=3))
    assert "tensor_parallel_size=3 does not divide" in message


def test_rows_of_each_head_are_not_split() -> None:
    settings = {"method": "per_head", "ratio": 4.0, "cache_bits": "auto"}
    message = _refused(replace(HERE, tensor_parallel=2), **settings)
    assert "channels of each head's own" in message
    assert "convert with head_groups=2, or leave tensor_parallel_size at 1" in message
    found = pair("llama", **settings)
    refuse_unsupported(HERE, found.plan, model_spec(found.source.config))
    split = pair("llama", **settings, head_groups=2)
    over_two = replace(HERE, tensor_parallel=2)
    refuse_unsupported(over_two, split.plan, model_spec(split.source.config))


def test_all_faults_are_told_at_once() -> None:
    message = _refused(replace(HERE, cache_dtype="fp8", speculative=True, tensor_parallel=3))
    for words in ("was not tested", "kv_cache_dtype", "speculative_config", "does not divide"):
        assert words in message


def test_bytes_are_told_of_one_device() -> None:
    """Keys and values are split over devices; rows are where groups of heads have their own."""
    words, gains, plan = _told(HERE)
    assert gains and f"{plan.bytes_per_token:,} bytes on each device" in words
    assert f"16 bits take {plan.source_bytes_per_token:,}" in words and "splits" not in words
    words, gains, plan = _told(replace(HERE, tensor_parallel=2))
    assert gains and f"take {plan.source_bytes_per_token // 2:,}; tensor_parallel_size=2" in words
    assert "rows are whole on every device: convert with head_groups=2 to split both" in words
    assert not _told(replace(HERE, tensor_parallel=4))[1]
    words, gains, plan = _told(replace(HERE, tensor_parallel=2), head_groups=2)
    assert gains and f"takes {plan.bytes_on_each(2):,} bytes" in words and "whole" not in words
    assert f"takes {plan.bytes_per_token:,} bytes" in _told(HERE, head_groups=2)[0]


def test_bytes_are_told_of_the_fullest_stage() -> None:
    """Blocks of all stages are as large as those of that one."""
    words, gains, plan = _told(replace(HERE, stages=STAGES))
    first, second, third = (entry.bytes_per_token for entry in plan.latents)
    most = max(first + second, third)
    assert gains and f"takes {most:,} bytes on each device" in words
    assert f"stages whose rows take {first + second:,}, {third:,}; VLLM_PP_LAYER" in words
    assert f"16 bits take {plan.source_bytes_per_token * 2 // 3:,}" in words


def test_hybrids_are_refused_in_a_pipeline() -> None:
    message = _refused(replace(HERE, stages=STAGES), "granitemoehybrid")
    assert "pipeline_parallel_size=2 splits recurrent layers and attention" in message


def _told(deployment: Deployment, **settings: Any) -> tuple[str, bool, CompressionPlan]:
    """What is said of a model of three layers, and its plan."""
    found = pair("llama", ratio=4.0, cache_bits="auto", **settings)
    spec = model_spec(found.source.config)
    return *told_bytes(deployment, found.plan, spec), found.plan
