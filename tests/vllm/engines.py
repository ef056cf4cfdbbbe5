"""vLLM in the process of a test, and what it is compared with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cacheshrink_hybrid import load_mla_model, save_mla_model
from cacheshrink_hybrid.caches import make_cache
from tests.models import VOCAB_SIZE, pair, random_ids

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # settings are looked at, and starts are short
os.environ["TORCH_COMPILE_DISABLE"] = "1"  # vLLM ranks tokens so, and then starts no second time
vllm = pytest.importorskip("vllm", reason="needs vLLM on CPUs: bash scripts/vllm.sh")
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory  # noqa: E402

from cacheshrink_hybrid.vllm.cache_specs import ExactRowsSpec  # noqa: E402

NEW_TOKENS = 48
PROMPTS = [random_ids(1, length, seed=length) for length in (5, 70, 19, 33, 8, 41, 12, 27)]
ROOM = 2**24
"""Bytes of the cache."""
PIECE = 32
"""Tokens of a forward pass, so that longer prompts are fed in pieces."""
BLOCK = 16
"""Tokens whose coded rows are in a block; at least, where a block holds a recurrent state too."""
ROUNDING = 1e-5
"""Nats that the logarithm of a probability differs by, from sums in another order."""
OTHER_CODE = 5e-3
"""The same where channels have the next code."""
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


@dataclass(frozen=True)
class Answer:
    """What vLLM goes on with.

    Attributes:
        tokens: one after the other.
        logprobs: of each, in nats.
    """

    tokens: list[int]
    logprobs: list[float]


@torch.no_grad()
def assert_as_generate(
    answers: Sequence[Answer], directory: Path, prompts: Sequence[Tensor] = PROMPTS
) -> None:
    """Each token of each answer is the one that `generate()` goes on with there, with the same
    probability.

    vLLM sums products in another order, so that its latents differ in their last bits, and now and
    then one that lies between two levels gets the other code. Tokens that read it may have
    probabilities that differ by as much as such a code tells, and where two are as likely, the
    other one may come; answers are compared with what is due behind it. Half of all tokens, at
    least, differ by rounding alone, which a fault of rows, blocks or positions leaves none at.
    """
    model, _ = load_mla_model(directory)
    model.kernel_backend = "torch"
    behind, differences = [], []
    for ids, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor(answer.tokens)[:, None]
        text = torch.cat([ids, tokens.T], 1)
        logits = model(text, past_key_values=make_cache(model)).logits[0, ids.shape[1] - 1 : -1]
        behind.append(logits.amax(1) - logits.gather(1, tokens)[:, 0])
        due = logits.log_softmax(1).gather(1, tokens)[:, 0]
        differences.append((torch.tensor(answer.logprobs) - due).abs())
    lag, difference = torch.cat(behind), torch.cat(differences)
    assert_few_other_codes(difference)
    assert lag.max() < OTHER_CODE, f"a token is {lag.max():.2g} behind the one due"


def assert_few_other_codes(difference: Tensor, rounding: float = ROUNDING) -> None:
    """Tokens differ as they do where most channels have the same codes, and a few the next ones."""
    half, most = float(difference.median()), float(difference.max())
    assert half < rounding, f"half of the tokens differ by more than {half:.2g}"
    assert most < OTHER_CODE, f"a token differs by {most:.2g}"


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


def answers_of(
    engine: Any, prompts: Sequence[Tensor] = PROMPTS, num_new: int = NEW_TOKENS
) -> list[Answer]:
    """What vLLM continues the prompts with."""
    wanted = vllm.SamplingParams(
        temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False, logprobs=0
    )
    given = [{"prompt_token_ids": ids[0].tolist()} for ids in prompts]
    answers = engine.generate(given, wanted, use_tqdm=False)
    found = [answer.outputs[0] for answer in answers]
    return [
        Answer(
            list(one.token_ids),
            [of[token].logprob for token, of in zip(one.token_ids, one.logprobs, strict=True)],
        )
        for one in found
    ]


def bind_processes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have vLLM run so many processes on the cores that this one may use, one on each if it can."""
    cores = sorted(os.sched_getaffinity(0))
    places = "|".join(str(cores[number % len(cores)]) for number in range(count))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", places)


def cache_config(engine: Any) -> Any:
    """vLLM's settings of its cache, as they became."""
    return engine.llm_engine.vllm_config.cache_config


def tokens_held(engine: Any) -> int:
    """Tokens whose rows vLLM has room for on one device. Its settings tell the tokens of the
    smallest blocks, which are those of exact rows, where some tokens stay exact."""
    cache = engine.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
    specs = [group.kv_cache_spec for group in cache.kv_cache_groups]
    (tokens,) = [spec.block_size for spec in specs if not isinstance(spec, ExactRowsSpec)]
    return cache.num_blocks * tokens


def counted(engine: Any, name: str) -> int:
    """One of vLLM's counters."""
    return sum(metric.value for metric in engine.get_metrics() if metric.name == f"vllm:{name}")
