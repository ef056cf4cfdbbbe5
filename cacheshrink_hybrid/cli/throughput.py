"""The program `throughput`: many requests with the engine, and one by one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..config import DEFAULT_RATIO
from ..conversion.convert import convert_to_mla
from ..demo import model_path
from ..demo.corpus import held_out_text, training_text
from ..engine import LLM, RequestOutput, SamplingParams
from ..errors import ConfigError
from ..evaluation.allocation.traces import SYNTHETIC, Request, read_trace, synthetic_trace
from ..pool.budget import budget_bytes
from ..text_tables import format_table
from .arguments import load_given
from .report import write_json


def run(given: argparse.Namespace) -> int:
    budget_bytes(given.cache_memory, given.device)
    if given.trace in SYNTHETIC:
        trace = synthetic_trace(given.trace, given.requests, given.seed)
    else:
        trace = read_trace(Path(given.trace), given.requests, given.seed)
    model, tokenizer = _model(given)
    if hasattr(model, "kernel_backend"):
        model.kernel_backend = given.backend
    prompts, lengths = _work(trace, tokenizer, given.max_prompt, given.max_output)
    # The prompts are cut from a few texts: what batching gains is to be seen, not that.
    settings = {"backend": given.backend, "prefix_cache": False}
    roomy = LLM(model, tokenizer, cache_memory=given.cache_memory, **settings)

    baseline = min(given.baseline_requests, len(prompts))
    print(f"one by one: {baseline} requests", flush=True)
    expected, alone = _one_by_one(model, prompts[:baseline], lengths[:baseline])

    records: list[dict[str, Any]] = [{"serving": "generate(), one by one", **alone}]
    needs = [
        roomy.store.need(len(prompt) + length)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    frame_bytes = roomy.store.layout.frame_bytes
    quarter = (max(sum(needs) // 4, *needs) + 1) * frame_bytes
    small = LLM(model, tokenizer, cache_memory=quarter, **settings)
    equal = True
    for name, llm in (("engine", roomy), ("engine, a quarter of the memory", small)):
        print(f"{name}: {len(prompts)} requests", flush=True)
        outputs, record = _served(llm, prompts, lengths)
        same = [output.token_ids == due for output, due in zip(outputs, expected, strict=False)]
        equal = equal and all(same)
        records.append(
            {
                "serving": name,
                **record,
                "speed-up": record["tokens/s"] / alone["tokens/s"],
                "equal outputs": f"{sum(same)} of {len(same)}",
            }
        )
    print("\n" + format_table(records))
    print(roomy.store.layout.table())
    write_json(
        given.output / "throughput.json",
        {
            "program": "throughput",
            "trace": str(given.trace),
            "threads": torch.get_num_threads(),
            "backend": given.backend,
            "device": str(model.device),
            "layers by kernels": sorted(roomy.runner.coverage.rows | roomy.runner.coverage.states),
            "layers by torch": {str(i): why for i, why in roomy.runner.coverage.faults.items()},
            "layout": roomy.store.layout.digest,
            "runs": records,
        },
    )
    print(f"figures: {given.output / 'throughput.json'}")
    return 0 if equal else 1


def _model(given: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if given.model is not None:
        return load_given(given, given.model)
    ratio = DEFAULT_RATIO if given.compression_ratio is None else given.compression_ratio
    print(f"converting the model that ships with the package at {ratio:g}x")
    model, _ = convert_to_mla(
        model_path(),
        compression_ratio=ratio,
        dtype=torch.float32,
        calibration_texts=training_text(),
        num_calibration_samples=16,
        verbose=False,
    )
    return model.to(given.device), AutoTokenizer.from_pretrained(model_path())


def _work(
    trace: Sequence[Request], tokenizer: PreTrainedTokenizerBase, max_prompt: int, max_output: int
) -> tuple[list[list[int]], list[int]]:
    """Prompts of the trace's lengths, from one text after the other, and their output lengths."""
    tokens = [tokenizer(text[: 8 * max_prompt]).input_ids for text in held_out_text()]
    tokens = [ids for ids in tokens if len(ids) >= max_prompt]
    if not tokens:
        raise ConfigError(f"no held-out text has --max-prompt={max_prompt} tokens; give less")
    prompts = [
        tokens[i % len(tokens)][: min(request.prompt_tokens, max_prompt)]
        for i, request in enumerate(trace)
    ]
    return prompts, [min(request.output_tokens, max_output) for request in trace]


def _one_by_one(
    model: PreTrainedModel, prompts: Sequence[list[int]], lengths: Sequence[int]
) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
    outputs = []
    began = time.perf_counter()
    for prompt, length in zip(prompts, lengths, strict=True):
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
        )
        outputs.append(tuple(output[0, len(prompt) :].tolist()))
    seconds = time.perf_counter() - began
    return outputs, _record(sum(map(len, outputs)), len(prompts), seconds)


def _served(
    llm: LLM, prompts: Sequence[list[int]], lengths: Sequence[int]
) -> tuple[list[RequestOutput], dict[str, Any]]:
    wishes = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    began = time.perf_counter()
    outputs = llm.generate(prompts, wishes, progress=True)
    seconds = time.perf_counter() - began
    num_tokens = sum(len(output.token_ids) for output in outputs)
    statistics = llm.store.statistics()
    return outputs, _record(num_tokens, len(prompts), seconds) | {
        "peak MiB": statistics.frames.peak * llm.store.layout.frame_bytes / 2**20,
        "pool MiB": llm.store.pool.nbytes / 2**20,
        "preemptions": llm.statistics.preemptions,
        "steps": llm.statistics.steps,
    }


def _record(num_tokens: int, num_requests: int, seconds: float) -> dict[str, Any]:
    return {
        "requests": num_requests,
        "tokens": num_tokens,
        "seconds": seconds,
        "tokens/s": num_tokens / seconds,
    }
