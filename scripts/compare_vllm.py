"""A converted model in vLLM beside `generate()`: the same tokens, and how many of them fit.

    bash scripts/vllm.sh -m scripts.compare_vllm OUT --source MODEL

Continues pieces of README.md greedily in float32: with prompts fed in pieces; with so few blocks
that requests are preempted; with prefixes kept from the time before; and with heads split over two
processes, where two divides them. Then counts the tokens that vLLM finds room for in 1 GiB, in
bfloat16, of the converted model and of its source. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # counters and settings are looked at

import torch
import vllm
from transformers import AutoTokenizer
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

from cacheshrink_hybrid import load_mla_model
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.plan import CompressionPlan
from cacheshrink_hybrid.spec import ModelSpec

from .benchmark import environment, report
from .figures.serving import in_vllm

PROMPT_TOKENS = (300, 17, 150, 64, 33, 220, 90, 8)
PIECE = 128
"""Tokens of a forward pass of vLLM."""
BLOCK = 32
"""Tokens of a block; of coded rows, where a block may hold exact ones, and more where it is to hold
a recurrent state."""
Continued = tuple[list[int], list[float]]
"""Tokens, and by how many nats each leads the second best."""
Found = TypeVar("Found")
IN_PIECES, PREEMPTED, KEPT = "in pieces", "preempted", "kept prefixes"
SPLIT = "split over 2 processes"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_vllm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("converted", type=Path, metavar="OUT", help="the converted model")
    parser.add_argument("--source", type=Path, metavar="MODEL", help="the model that it was")
    parser.add_argument("--new-tokens", type=int, default=200, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON result here")
    given = parser.parse_args(argv)

    prompts = _prompts(given.converted)
    plan, spec, continued = _in_process_of_its_own(
        _by_generate, given.converted, prompts, given.new_tokens
    )
    due, leads = zip(*continued, strict=True)
    print(f"generate() has gone on with {len(prompts)} prompts", flush=True)
    longest = max(PROMPT_TOKENS) + given.new_tokens
    settings: dict[str, dict[str, Any]] = {
        IN_PIECES: {},
        PREEMPTED: {},
        KEPT: {"enable_prefix_caching": True},
    }
    if _splits_in_two(spec):
        settings[SPLIT] = {"tensor_parallel_size": 2}
    runs = []
    for name, changed in settings.items():
        if name == SPLIT:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"  # a core for each
        with engine(given.converted, max_model_len=longest + 1, **changed) as started:
            cache = started.llm_engine.vllm_config.cache_config
            # Room for the longest request, and for half of another one.
            settings[PREEMPTED]["num_gpu_blocks_override"] = math.ceil(
                1.5 * cache.num_gpu_blocks / cache.kv_cache_max_concurrency
            )
            answers = tokens_of(started, prompts, given.new_tokens)
            if name == KEPT:
                answers = tokens_of(started, prompts, given.new_tokens)
            runs.append(
                {
                    "run": name,
                    "requests with the same tokens": sum(map(list.__eq__, answers, due)),
                    "requests": len(prompts),
                    "leads where others part": _leads_at_parting(answers, due, leads),
                    "preemptions": count(started, "num_preemptions"),
                    "tokens from kept prefixes": count(started, "prefix_cache_hits"),
                }
            )
        print(runs[-1], flush=True)
    result: dict[str, Any] = {
        "environment": {**environment(), "vllm": vllm.__version__},
        "model": given.converted.name if given.source is None else given.source.name,
        "compression_ratio": round(plan.compression_ratio, 3),
        "new tokens": given.new_tokens,
        "runs": runs,
    }
    os.environ.pop("VLLM_CPU_OMP_THREADS_BIND", None)
    if given.source is not None:
        result["tokens in 1 GiB"] = {
            name: _tokens_that_fit(path, longest)
            for name, path in (("converted", given.converted), ("source", given.source))
        }
    print(in_vllm([result]))
    report(result, given.json)
    return 0


def _splits_in_two(spec: ModelSpec) -> bool:
    """Whether two processes can have equal shares of all heads."""
    counts = [
        count
        for layer in spec.attention_layers
        if layer.attention is not None
        for count in (layer.attention.num_attention_heads, layer.attention.num_key_value_heads)
    ]
    counts += [layer.state.num_heads for layer in spec.state_layers if layer.state is not None]
    return all(count % 2 == 0 for count in counts)


def _tokens_that_fit(directory: Path, longest: int) -> int:
    """Tokens whose rows vLLM finds room for in 1 GiB, in bfloat16."""
    room = {"dtype": "bfloat16", "max_model_len": longest, "kv_cache_memory_bytes": 2**30}
    with engine(directory, **room) as started:
        cache = started.llm_engine.vllm_config.cache_config
        return cache.num_gpu_blocks * cache.block_size


def _prompts(directory: Path) -> list[list[int]]:
    """Pieces of README.md, one behind the other."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    ends = [sum(PROMPT_TOKENS[: i + 1]) for i in range(len(PROMPT_TOKENS))]
    return [ids[end - n : end] for end, n in zip(ends, PROMPT_TOKENS, strict=True)]


def _in_process_of_its_own(function: Callable[..., Found], *given: Any) -> Found:
    """What a function returns. vLLM 0.32 does not start where numba was imported before, which
    reads rows on a CPU."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *given).result()


def _by_generate(
    directory: Path, prompts: Sequence[list[int]], num_new: int
) -> tuple[CompressionPlan, ModelSpec, list[Continued]]:
    """How the model was compressed, what it is, and how `generate()` goes on with each prompt."""
    model, _ = load_mla_model(directory, dtype="float32")
    model.generation_config.eos_token_id = None
    continued = [_continued(model, ids, num_new) for ids in prompts]
    return plan_of(model), model_spec(model.config), continued


@torch.no_grad()
def _continued(model: Any, prompt: list[int], num_new: int) -> Continued:
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    found = model.generate(torch.tensor([prompt]), max_new_tokens=num_new, **options)
    best = torch.cat(found.logits).topk(2).values
    return found.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist()


def _leads_at_parting(
    answers: Sequence[list[int]], due: Sequence[list[int]], leads: Sequence[list[float]]
) -> list[float]:
    """Of requests with other tokens than due, the lead of the first one that differs."""
    found = []
    for answer, tokens, lead in zip(answers, due, leads, strict=True):
        differs = [one != other for one, other in zip(answer, tokens, strict=True)]
        if any(differs):
            found.append(round(lead[differs.index(True)], 5))
    return found


@contextmanager
def engine(directory: Path, **settings: Any) -> Iterator[Any]:
    """vLLM in this process, whose memory is free again afterwards."""
    options: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_num_batched_tokens": PIECE,
        "max_num_seqs": len(PROMPT_TOKENS),
        "block_size": BLOCK,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "kv_cache_memory_bytes": 2**28,
    }
    started = vllm.LLM(model=str(directory), **{**options, **settings})
    try:
        yield started
    finally:
        started.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def tokens_of(started: Any, prompts: Sequence[list[int]], num_new: int) -> list[list[int]]:
    """What vLLM goes on with."""
    wanted = vllm.SamplingParams(
        temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False
    )
    given = [{"prompt_token_ids": ids} for ids in prompts]
    answers = started.generate(given, wanted, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def count(started: Any, name: str) -> int:
    """One of vLLM's counters."""
    return sum(metric.value for metric in started.get_metrics() if metric.name == f"vllm:{name}")


if __name__ == "__main__":
    raise SystemExit(main())
