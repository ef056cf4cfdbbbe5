"""vLLM serves hybrids: attention reads rows of latents, recurrent layers are vLLM's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cacheshrink_hybrid import convert_to_mla, save_mla_model
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.families import model_spec
from tests.models import pair, random_ids
from tests.vllm.engines import (
    BLOCK,
    CODED,
    EXACT,
    ROOM,
    answers_of,
    assert_as_generate,
    bind_processes,
    cache_config,
    counted,
    saver,
    started,
    vllm,
    word_tokenizer,
)

pytestmark = pytest.mark.vllm

PROMPTS = [random_ids(1, length, seed=length) for length in (5, 180, 19, 130, 8, 101, 60, 27)]
LONGEST = 240
"""Tokens, so that a request has several blocks, each as large as a state."""
CASES = {
    "joint": ("granitemoehybrid", {"method": "joint", **CODED}),
    "rotate": ("granitemoehybrid-rope", {"method": "rotate", **CODED}),
    "uncoded": ("granitemoehybrid-rope", {"method": "joint", "ratio": 2.0}),
    "exact": ("granitemoehybrid", {"method": "joint", **CODED, **EXACT}),
    "exact rotate": ("granitemoehybrid-rope", {"method": "rotate", **CODED, **EXACT}),
    "groups": ("granitemoehybrid", {"method": "joint", **CODED, "head_groups": 2}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of the cases."""
    return saver(tmp_path_factory.mktemp("saved"), CASES)


def _started(directory: Path, **settings: Any):
    return started(directory, **{"max_model_len": LONGEST, **settings})


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_generate(name: str, saved: Callable[[str], Path]) -> None:
    directory = saved(name)
    with _started(directory) as engine:
        assert_as_generate(answers_of(engine, PROMPTS), directory, PROMPTS)


@pytest.mark.parametrize("name", ["rotate", "exact"])
def test_a_block_is_no_larger_than_a_state_asks_for(
    name: str, saved: Callable[[str], Path]
) -> None:
    """It has as many tokens as the smallest multiple of a block that a state fits in."""
    directory = saved(name)
    case, settings = CASES[name]
    spec = model_spec(pair(case, **settings).source.config)
    with _started(directory) as engine:
        cache = cache_config(engine)
        page = cache.mamba_page_size_padded
        assert cache.num_gpu_blocks == ROOM // page
        (layer, *_) = spec.state_layers
        state = layer.state.recurrent_bytes + 4 * layer.state.conv_channels * (
            layer.state.conv_kernel - 1
        )
        assert state <= page < state + BLOCK * pair(case, **settings).plan.bytes_per_token


@pytest.mark.parametrize("name", ["uncoded", "exact rotate"])
def test_preempted_requests_come_to_the_same(name: str, saved: Callable[[str], Path]) -> None:
    directory = saved(name)
    with _started(directory) as engine:
        cache = cache_config(engine)
        blocks = math.ceil(1.5 * cache.num_gpu_blocks / cache.kv_cache_max_concurrency)
    with _started(directory, num_gpu_blocks_override=blocks) as engine:
        assert_as_generate(answers_of(engine, PROMPTS), directory, PROMPTS)
        assert counted(engine, "num_preemptions")


@pytest.mark.parametrize("name", ["uncoded", "exact rotate"])
def test_kept_prefixes_come_to_the_same(name: str, saved: Callable[[str], Path]) -> None:
    """Rows, exact rows and states of a prefix are taken up together."""
    directory = saved(name)
    begun = random_ids(1, 150, seed=7)
    prompts = [torch.cat([begun, random_ids(1, 3 + 9 * i, seed=i)], dim=1) for i in range(4)]
    with _started(directory, enable_prefix_caching=True) as engine:
        for _ in range(3):
            assert_as_generate(answers_of(engine, prompts), directory, prompts)
        assert counted(engine, "prefix_cache_hits") >= len(prompts) * 96


@pytest.mark.parametrize("name", ["joint", "exact rotate", "groups"])
def test_heads_split_over_processes_come_to_the_same(
    name: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bind_processes(2, monkeypatch)
    directory = saved(name)
    with _started(directory, tensor_parallel_size=2) as engine:
        assert_as_generate(answers_of(engine, PROMPTS), directory, PROMPTS)


def test_the_shipped_model_comes_to_the_same(tmp_path: Path) -> None:
    settings = {"compression_ratio": 4.0, "num_calibration_samples": 8, "dtype": "float32"}
    model, tokenizer = convert_to_mla(model_path(), **settings)
    save_mla_model(model, tokenizer, tmp_path / "small")
    text = "def fibonacci(n):\n    Return the n-th number of Fibonacci, " * 6
    ids = tokenizer(text, return_tensors="pt").input_ids
    prompts = [ids[:, :length] for length in (9, 33, 240, 120)]
    with _started(tmp_path / "small", max_model_len=512) as engine:
        assert_as_generate(answers_of(engine, prompts), tmp_path / "small", prompts)


def test_states_that_are_coded_are_refused(tmp_path: Path) -> None:
    settings = {**CODED, "state_ratio": 2.0}
    converted = pair("granitemoehybrid", **settings).converted
    save_mla_model(converted, word_tokenizer(), tmp_path / "coded")
    with pytest.raises(Exception, match="convert without state_ratio"):
        vllm.EngineArgs(model=str(tmp_path / "coded")).create_engine_config()


def test_pipelines_are_refused(saved: Callable[[str], Path]) -> None:
    with pytest.raises(Exception, match="calls the layers of other processes too; leave it at 1"):
        vllm.EngineArgs(model=str(saved("joint")), pipeline_parallel_size=2).create_engine_config()
