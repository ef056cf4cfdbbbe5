"""vLLM in the process of a test, and what it is compared with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cacheshrink_hybrid import load_mla_model, save_mla_model
from tests.models import VOCAB_SIZE, pair, random_ids

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # settings are looked at, and starts are short
vllm = pytest.importorskip("vllm", reason="needs vLLM on CPUs: bash scripts/vllm.sh")
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory  # noqa: E402

NEW_TOKENS = 48
PROMPTS = [random_ids(1, length, seed=length) for length in (5, 70, 19, 33, 8, 41, 12, 27)]
ROOM = 2**24
"""Bytes of the cache."""
PIECE = 32
"""Tokens of a forward pass, so that longer prompts are fed in pieces."""
BLOCK = 16
"""Tokens whose coded rows are in a block; at least, where a block holds a recurrent state too."""
CODED = {"ratio": 4.0, "cache_bits": "auto"}
EXACT = {"exact_sinks": 4, "exact_window": 9}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word for each token."""
    words = {f"w{number}": number for number in range(VOCAB_SIZE)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="w0", eos_token="w2")


def saver(folder: Path, cases: Mapping[str, tuple[str, dict]]) -> Callable[[str], Path]:
    """From the name of a case to the directory with its checkpoint, made when it is asked for."""

    def save(name: str) -> Path:
        case, settings = cases[name]
        if not (folder / name).exists():
            save_mla_model(pair(case, **settings).converted, word_tokenizer(), folder / name)
        return folder / name

    return save


@torch.no_grad()
def tokens_due(
    directory: Path, prompts: Sequence[Tensor] = PROMPTS, num_new: int = NEW_TOKENS
) -> list[list[int]]:
    """What `generate()` continues the prompts with."""
    model, _ = load_mla_model(directory)
    model.kernel_backend = "torch"
    model.generation_config.eos_token_id = None
    options = {"do_sample": False, "max_new_tokens": num_new}
    return [model.generate(ids, **options)[0, ids.shape[1] :].tolist() for ids in prompts]


@contextmanager
def started(directory: Path, **settings: Any) -> Iterator[Any]:
    """vLLM in this process; its memory is free again afterwards."""
    options = {
        "dtype": "float32",
        "max_model_len": 128,
        "max_num_batched_tokens": PIECE,
        "max_num_seqs": len(PROMPTS),
        "block_size": BLOCK,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "kv_cache_memory_bytes": ROOM,
    }
    engine = vllm.LLM(model=str(directory), **{**options, **settings})
    try:
        yield engine
    finally:
        engine.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def tokens_of(
    engine: Any, prompts: Sequence[Tensor] = PROMPTS, num_new: int = NEW_TOKENS
) -> list[list[int]]:
    """What vLLM continues the prompts with."""
    wanted = vllm.SamplingParams(
        temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False
    )
    given = [{"prompt_token_ids": ids[0].tolist()} for ids in prompts]
    answers = engine.generate(given, wanted, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def bind_processes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have vLLM run so many processes on the cores that this one may use, one on each if it can."""
    cores = sorted(os.sched_getaffinity(0))
    places = "|".join(str(cores[number % len(cores)]) for number in range(count))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", places)


def cache_config(engine: Any) -> Any:
    """vLLM's settings of its cache, as they became."""
    return engine.llm_engine.vllm_config.cache_config


def tokens_held(engine: Any) -> int:
    """Tokens whose rows vLLM has room for on one device."""
    cache = cache_config(engine)
    return cache.num_gpu_blocks * cache.block_size


def counted(engine: Any, name: str) -> int:
    """One of vLLM's counters."""
    return sum(metric.value for metric in engine.get_metrics() if metric.name == f"vllm:{name}")
