"""vLLM serves converted models, and gives the tokens of `generate()`; needs vLLM on CPUs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import pair, random_ids
from tests.vllm.engines import (
    CODED,
    EXACT,
    NEW_TOKENS,
    PROMPTS,
    ROOM,
    Answer,
    answers_of,
    assert_as_generate,
    bind_processes,
    counted,
    saver,
    started,
    tokens_held,
    vllm,
)

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.vllm

CASES = {
    "joint": ("llama", {"method": "joint", **CODED}),
    "per_head": ("llama", {"method": "per_head", **CODED}),
    "rotate": ("llama", {"method": "rotate", **CODED}),
    "rotate_joint": ("llama", {"method": "rotate_joint", **CODED}),
    "separate": ("llama", {"method": "separate", **CODED}),
    "uncoded": ("llama", {"method": "joint", "ratio": 2.0}),
    "biases": ("llama-biases", {"method": "joint", **CODED}),
    "qwen2": ("qwen2", {"method": "rotate", **CODED}),
    "qwen3": ("qwen3", {"method": "joint", **CODED}),
    "mistral": ("mistral", {"method": "joint", **CODED}),
    "exact": ("llama", {"method": "joint", **CODED, **EXACT}),
    "exact rotate": ("llama", {"method": "rotate", **CODED, **EXACT}),
    "exact qwen3": ("qwen3", {"method": "joint", **CODED, **EXACT}),
    "groups": ("llama", {"method": "joint", **CODED, "head_groups": 2}),
    "groups per_head": ("llama", {"method": "per_head", **CODED, "head_groups": 2}),
    "groups exact": ("llama", {"method": "rotate", **CODED, **EXACT, "head_groups": 2}),
    "groups uncoded": ("qwen3", {"method": "separate", "ratio": 2.0, "head_groups": 2}),
    "sinks": ("llama", {"method": "rotate", **CODED, "exact_sinks": 3, "exact_window": 0}),
    "window": ("llama", {"method": "joint", **CODED, "exact_sinks": 0, "exact_window": 7}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of the cases."""
    return saver(tmp_path_factory.mktemp("saved"), CASES)


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_generate(name: str, saved: Callable[[str], Path]) -> None:
    directory = saved(name)
    case, settings = CASES[name]
    with started(directory) as engine:
        assert_as_generate(answers_of(engine), directory)
        held = tokens_held(engine)
        stored = pair(case, **settings).plan.bytes_per_token
        if "cache_bits" not in settings:  # latents lie there in the activations' type
            stored *= 2
        assert held * stored == pytest.approx(ROOM, rel=0.02)


@pytest.mark.parametrize("name", ["rotate", "exact"])
def test_preempted_requests_come_to_the_same(name: str, saved: Callable[[str], Path]) -> None:
    directory = saved(name)
    with started(directory, num_gpu_blocks_override=24 if name == "rotate" else 56) as engine:
        assert_as_generate(answers_of(engine), directory)
        assert counted(engine, "num_preemptions")


@pytest.mark.parametrize("name", ["rotate", "exact"])
def test_kept_prefixes_come_to_the_same(name: str, saved: Callable[[str], Path]) -> None:
    """Also where a prefix is taken up in the middle, and while others are dropped to make room."""
    directory = saved(name)
    begun = random_ids(1, 56, seed=7)
    prompts = [torch.cat([begun, random_ids(1, 3 + i, seed=i)], dim=1) for i in range(4)]
    with started(directory, enable_prefix_caching=True) as engine:
        answers_of(engine, prompts[:1])
        assert_as_generate(answers_of(engine, prompts), directory, prompts)
        assert counted(engine, "prefix_cache_hits") >= 3 * 48
    with started(directory, enable_prefix_caching=True, num_gpu_blocks_override=60) as engine:
        for _ in range(2):
            assert_as_generate(answers_of(engine, prompts), directory, prompts)
        assert counted(engine, "prefix_cache_hits")


@pytest.mark.parametrize("name", ["joint", "rotate_joint", "exact", "exact rotate"])
def test_heads_split_over_processes_come_to_the_same(
    name: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bind_processes(2, monkeypatch)
    directory = saved(name)
    with started(directory, tensor_parallel_size=2) as engine:
        assert_as_generate(answers_of(engine), directory)


@pytest.mark.parametrize("name", ["groups", "groups per_head", "groups exact", "groups uncoded"])
def test_rows_split_with_their_heads_and_come_to_the_same(
    name: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two processes, each of which has room for twice as many tokens as one with all heads."""
    directory = saved(name)
    with started(directory) as engine:
        assert_as_generate(answers_of(engine), directory)
        alone = tokens_held(engine)
    bind_processes(2, monkeypatch)
    with started(directory, tensor_parallel_size=2) as engine:
        assert_as_generate(answers_of(engine), directory)
        case, settings = CASES[name]
        plan = pair(case, **settings).plan
        growth = plan.bytes_per_token / plan.bytes_on_each(2)
        assert growth > 1.75
        assert tokens_held(engine) == pytest.approx(growth * alone, rel=0.02)


@pytest.mark.parametrize("name", ["exact", "uncoded"])
def test_layers_split_over_processes_come_to_the_same(
    name: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers in one process and one in the other, all of different widths, without room for all
    requests and with prefixes kept."""
    bind_processes(2, monkeypatch)
    directory = saved(name)
    begun = random_ids(1, 56, seed=7)
    prompts = [*PROMPTS, torch.cat([begun, PROMPTS[0]], 1), torch.cat([begun, PROMPTS[4]], 1)]
    settings = {
        "pipeline_parallel_size": 2,
        "enable_prefix_caching": True,
        "num_gpu_blocks_override": 60 if name == "exact" else 24,
    }
    with started(directory, **settings) as engine:
        answers = answers_of(engine, prompts)
        assert counted(engine, "num_preemptions")
        answers += answers_of(engine, prompts[-2:])
        assert counted(engine, "prefix_cache_hits")
    assert_as_generate(answers, directory, [*prompts, *prompts[-2:]])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype='fp8' would code rows a second time"),
        ({"tensor_parallel_size": 4}, "does not divide"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative_config",
        ),
        ({"enable_lora": True}, "enable_lora"),
        ({"pipeline_parallel_size": 4}, "leaves a process without layers; give at most 3"),
    ],
)
def test_settings_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], words: str, saved: Callable[[str], Path]
) -> None:
    with pytest.raises(Exception, match=words):
        vllm.EngineArgs(model=str(saved("joint")), **settings).create_engine_config()


def test_another_format_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    directory = shutil.copytree(saved("joint"), tmp_path / "older")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "format_version": 7}))
    with pytest.raises(Exception, match="has format version 7; this package reads"):
        vllm.EngineArgs(model=str(directory)).create_engine_config()


def test_exact_tokens_need_blocks_that_are_given_back(saved: Callable[[str], Path]) -> None:
    settings = {"model": str(saved("exact")), "disable_hybrid_kv_cache_manager": True}
    with pytest.raises(Exception, match="exact_sinks=0 and exact_window=0"):
        vllm.EngineArgs(**settings).create_engine_config()


def test_vllm_without_the_plugin_refuses(saved: Callable[[str], Path]) -> None:
    program = f"import vllm; vllm.EngineArgs(model={str(saved('joint'))!r}).create_engine_config()"
    environment = {**os.environ, "VLLM_PLUGINS": "none"}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode
    assert "contains custom code which must be executed" in found.stderr


def test_the_log_tells_bytes(saved: Callable[[str], Path]) -> None:
    program = f"import vllm; vllm.EngineArgs(model={str(saved('joint'))!r}).create_engine_config()"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    told = "Converted by cacheshrink_hybrid: a token takes"
    (line,) = (x for x in (found.stdout + found.stderr).splitlines() if told in x)
    assert "INFO" in line and "bytes on each device" in line


def test_a_server_answers_and_ends(saved: Callable[[str], Path]) -> None:
    directory, port = saved("rotate"), _free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(directory), "--kv-cache-memory-bytes", str(ROOM)),
        *("--port", str(port), "--dtype", "float32", "--max-model-len", "128"),
    ]
    server = subprocess.Popen(command, start_new_session=True)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        answer = _when_up(
            server,
            lambda: client.completions.create(
                model=str(directory),
                prompt=[ids[0].tolist() for ids in PROMPTS],
                max_tokens=NEW_TOKENS,
                temperature=0,
                logprobs=0,
                extra_body={"ignore_eos": True, "skip_special_tokens": False},
            ),
        )
        answers = [
            Answer(
                [int(word.removeprefix("w")) for word in choice.text.split()],
                choice.logprobs.token_logprobs,
            )
            for choice in answer.choices
        ]
        assert_as_generate(answers, directory)
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        assert not _members(server.pid)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)


def _when_up(server: subprocess.Popen, ask: Callable[[], Any], seconds: int = 300) -> Any:
    """What a server answers once it listens."""
    end = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except openai.APIConnectionError:
            assert server.poll() is None and time.monotonic() < end
            time.sleep(1)


def _members(group: int) -> list[str]:
    """Processes of a group that are left."""
    found = subprocess.check_output(["ps", "-eo", "pgid=,stat=,args="], text=True)
    lines = [line.split(maxsplit=2) for line in found.splitlines()]
    return [args for pgid, stat, args in lines if int(pgid) == group and "Z" not in stat]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
