"""Allocators get the same requests and bytes; the frames of this package serve most of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cacheshrink_hybrid.cli import main
from cacheshrink_hybrid.errors import ConfigError, PlanError
from cacheshrink_hybrid.evaluation.allocation.allocator import Sizes
from cacheshrink_hybrid.evaluation.allocation.allocators import ALLOCATORS
from cacheshrink_hybrid.evaluation.allocation.latency import measure_latency
from cacheshrink_hybrid.evaluation.allocation.replay import (
    capacity_for,
    replay,
    replay_without_admission,
)
from cacheshrink_hybrid.evaluation.allocation.traces import (
    SYNTHETIC,
    Request,
    read_trace,
    synthetic_trace,
)
from cacheshrink_hybrid.evaluation.reference_models import REFERENCE_MODELS

MODELS = {model.name: model for model in REFERENCE_MODELS}


def sizes_of(name: str, ratio: float = 4.0, codec: str = "int8") -> Sizes:
    return Sizes(MODELS[name].layer_rows(ratio), MODELS[name].state_rows(codec))


@pytest.fixture(scope="module")
def churn_results() -> dict[str, dict[str, float]]:
    """Concurrency on the churn trace by model and allocator."""
    requests = synthetic_trace("churn", 420)
    results: dict[str, dict[str, float]] = {}
    for name in MODELS:
        sizes = sizes_of(name)
        capacity = capacity_for(sizes, requests, 40)
        for kind in ("bytes alone", "frames", "two_ended", "uniform_page", "fixed_dual 0.474"):
            outcome = replay(ALLOCATORS[kind](sizes, capacity), requests)
            assert outcome.completed + outcome.rejected == len(requests)
            results.setdefault(name, {})[kind] = outcome.concurrency
            if kind == "frames":
                assert (outcome.corrupted, outcome.rejected, outcome.moved_bytes) == (0, 0, 0)
    return results


@pytest.mark.parametrize("model", MODELS)
def test_as_many_at_once_as_with_ideal_compaction(churn_results, model: str) -> None:
    result = churn_results[model]
    assert result["frames"] >= 0.99 * result["two_ended"]


@pytest.mark.parametrize("model", MODELS)
def test_nearly_as_many_as_the_bytes_allow(churn_results, model: str) -> None:
    result = churn_results[model]
    assert result["frames"] >= 0.985 * result["bytes alone"]
    assert result["two_ended"] <= 1.01 * result["bytes alone"]


@pytest.mark.parametrize("model", MODELS)
def test_at_least_as_many_as_with_uniform_pages(churn_results, model: str) -> None:
    result = churn_results[model]
    assert result["frames"] >= result["uniform_page"]
    if model == "Falcon-H1-7B":
        assert result["frames"] >= 1.3 * result["uniform_page"]


def test_more_than_with_a_fixed_split(churn_results) -> None:
    gains = [result["frames"] / result["fixed_dual 0.474"] for result in churn_results.values()]
    assert min(gains) > 1.15
    assert np.median(gains) > 1.5


@pytest.mark.parametrize("kind", ALLOCATORS)
def test_refused_calls_change_nothing(kind: str) -> None:
    sizes = sizes_of("Jamba-v0.1")
    allocator = ALLOCATORS[kind](sizes, 40 * sizes.useful(1000))
    random = np.random.default_rng(0)
    live: dict[int, int] = {}
    refused = 0
    for name in range(300):
        if live and random.random() < 0.4:
            leaver = int(random.choice(list(live)))
            allocator.release(leaver)
            del live[leaver]
        tokens = int(random.integers(1, 3000))
        before = allocator.held_bytes
        if allocator.admit(name, tokens):
            live[name] = tokens
            assert allocator.held_bytes >= before
        else:
            refused += 1
            assert allocator.held_bytes == before
        for other in list(live)[:3]:
            before = allocator.held_bytes
            if allocator.grow(other, live[other] + 50):
                live[other] += 50
            else:
                assert allocator.held_bytes == before
        assert allocator.held_bytes <= allocator.capacity
        allocator.check()
    assert refused
    for name in live:
        allocator.release(name)
    assert allocator.held_bytes == 0


def test_replays_are_reproducible() -> None:
    requests = synthetic_trace("mixed_long", 60, seed=3)
    sizes = sizes_of("Falcon-H1-7B")
    capacity = capacity_for(sizes, requests, 10)
    outcomes = [replay(ALLOCATORS["frames"](sizes, capacity), requests) for _ in range(2)]
    assert outcomes[0] == outcomes[1]


def test_pressure_preempts_and_still_completes() -> None:
    """Prompts that fit together and outputs that do not."""
    sizes = sizes_of("Jamba-v0.1")
    requests = [Request(arrival=0, prompt_tokens=64, output_tokens=1500) for _ in range(12)]
    allocator = ALLOCATORS["frames"](sizes, 8 * sizes.useful(900))
    outcome = replay(allocator, requests)
    assert outcome.preemptions > 0
    assert outcome.recomputed_tokens >= 64 * outcome.preemptions
    assert outcome.completed == 12
    assert allocator.held_bytes == 0


def test_what_never_fits_is_rejected() -> None:
    sizes = sizes_of("Jamba-v0.1")
    requests = [Request(arrival=0, prompt_tokens=n, output_tokens=2) for n in (10, 10**6, 20)]
    outcome = replay(ALLOCATORS["frames"](sizes, 4 * sizes.useful(100)), requests)
    assert (outcome.completed, outcome.rejected) == (2, 1)


def test_without_admission_requests_are_corrupted() -> None:
    requests = synthetic_trace("agentic_burst", 80)
    sizes = sizes_of("Jamba-v0.1", 1.0, "bf16")
    outcome = replay_without_admission(
        ALLOCATORS["fixed_dual 0.474"](sizes, capacity_for(sizes, requests, 8)), requests
    )
    assert outcome.oom_events > 0
    assert outcome.corrupted > outcome.completed // 2
    roomy = replay_without_admission(ALLOCATORS["frames"](sizes, 200 << 30), requests)
    assert (roomy.oom_events, roomy.corrupted) == (0, 0)


def test_infeasible_pages_are_refused() -> None:
    sizes = sizes_of("Zamba2-7B")
    with pytest.raises(PlanError, match="a large page takes"):
        ALLOCATORS["lcm"](sizes, 4 << 30)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_traces(name: str) -> None:
    trace = synthetic_trace(name, 300, seed=1)
    assert trace == synthetic_trace(name, 300, seed=1)
    assert trace != synthetic_trace(name, 300, seed=2)
    assert len(trace) == 300
    assert all(r.prompt_tokens >= 16 and r.output_tokens >= 32 for r in trace)
    assert [r.arrival for r in trace] == sorted(r.arrival for r in trace)


def test_recorded_traces(tmp_path: Path) -> None:
    azure = tmp_path / "azure.csv"
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nx,374,44\ny,396,109\n")
    mooncake = tmp_path / "mooncake.jsonl"
    mooncake.write_text('{"timestamp": 0, "input_length": 7, "output_length": 5}\n')
    lengths = tmp_path / "lengths.json"
    lengths.write_text(json.dumps([{"prompt_tokens": 8}, {"prompt_tokens": 0}]))
    assert read_trace(azure) == (
        Request(arrival=0, prompt_tokens=374, output_tokens=44),
        Request(arrival=1, prompt_tokens=396, output_tokens=109),
    )
    assert len(read_trace(azure, 1)) == 1
    assert read_trace(mooncake)[0].prompt_tokens == 7
    assert [r.prompt_tokens for r in read_trace(lengths)] == [8, 1]


def test_faulty_traces(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        read_trace(tmp_path / "missing.csv")
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no trace that is known"):
        read_trace(other)
    with pytest.raises(ConfigError, match="choose one of uniform_short"):
        synthetic_trace("steady", 4)


def test_time_per_call_does_not_grow_with_the_pool() -> None:
    records = measure_latency([1_000, 1_000_000], [16], calls=400)
    small, large = (record["allocate p50 us"] + record["release p50 us"] for record in records)
    assert large < 3 * small


def test_program(tmp_path: Path, capsys) -> None:
    arguments = ["--traces", "churn", "--models", "Jamba-v0.1", "Zamba2-7B", "--requests", "40"]
    assert main(["allocator", *arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "infeasible" in printed
    assert (tmp_path / "allocator.png").stat().st_size > 1000
    results = json.loads((tmp_path / "allocator.json").read_text())
    assert len(results["replays"]) == 2 * 2 * len(ALLOCATORS)
    assert (tmp_path / "allocator.md").read_text() in printed
    assert main(["allocator", "--traces", "nothing", "--output", str(tmp_path)]) == 2
