"""Serving from equal cache memory: the engine beside continuous batching of transformers.

    python -m scripts.compare_serving SOURCE CONVERTED --json serving.json

SOURCE is a model, CONVERTED the directory of its conversion. `--clients` requests at once, with
prompts cut from held-out documentation and greedy answers of one length, are given to
`generate_batch` of transformers on the source, and to the engine on the conversion. Both have the
same bytes for what they remember: those that `--fit` such requests take at 16 bits per number. On a
CPU `generate_batch` remembers in the type of the weights, float32, and gets as many tokens as fit
at 16 bits, so that its cache is counted at half of what it takes.

`--llama-server PATH --gguf FILE` lets llama.cpp's own server take part: the GGUF of the source,
with flash attention and a q4_0 cache of the same bytes that all slots share, asked over HTTP.

Rounds run the two in turns in one process, after answers of two tokens that are not counted. What
comes out: tokens per second of answers, prompts included in the time; the ratio to `generate_batch`
within a round, of which the median is shown; how many requests fit at once at their full length;
and as last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
)

from cacheshrink_hybrid.demo.corpus import held_out_text
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.engine.named_model import load_named
from cacheshrink_hybrid.spec import BYTES_16BIT
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import common_arguments, environment
from .llama_server import cache_tokens, llama_server

PAGE_TOKENS = 16
"""Of a page of `generate_batch`: small, so that little of the last one is wasted."""
PEER, ENGINE = "generate_batch of transformers", "engine, converted"
LLAMA = "llama-server, q4_0 cache"
Serve = Callable[[int], int]
"""Answers all requests with so many tokens each; gives the number of tokens that came."""
FIRST_OUTPUT = 2
"""Tokens of the answers before the first round, in which compiled functions are made."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("converted")
    parser.add_argument("--clients", type=int, default=16, help="requests at once")
    parser.add_argument("--fit", type=int, default=4, help="requests that fit at 16 bits")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="llama.cpp's program")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="SOURCE for llama-server")
    common_arguments(parser)
    given = parser.parse_args(argv)
    if (given.llama_server is None) != (given.gguf is None):
        parser.error("--llama-server and --gguf go together; give both, or none")
    torch.set_num_threads(given.threads)
    source = AutoModelForCausalLM.from_pretrained(given.source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.source)
    converted, _ = load_named(given.converted)
    prompts = _prompts(tokenizer, given.clients, given.prompt)
    longest = given.prompt + given.output
    config = source.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_numbers = 2 * width * config.num_key_value_heads * config.num_hidden_layers
    token_bytes = BYTES_16BIT * token_numbers
    cache_bytes = given.fit * (longest + PAGE_TOKENS) * token_bytes
    servings: dict[str, Serve] = {
        PEER: _of_transformers(source, prompts, cache_bytes // token_bytes)
    }
    llm = LLM(converted, cache_memory=cache_bytes, max_batch=given.clients, prefix_cache=False)
    servings[ENGINE] = _of_engine(llm, prompts)
    fitting = {
        PEER: cache_bytes // token_bytes // longest,
        ENGINE: llm.store.pool.num_frames // llm.store.layout.frames_for(longest),
    }
    with ExitStack() as stack:
        if given.llama_server is not None:
            running = llama_server(
                given.llama_server,
                given.gguf,
                num_tokens=cache_tokens(cache_bytes, token_numbers),
                longest=longest,
                clients=given.clients,
                threads=given.threads,
            )
            server = stack.enter_context(running)
            servings[LLAMA] = partial(server.serve, prompts)
            fitting[LLAMA] = server.slots
        records = _measured(servings, given.rounds, given.clients, given.output)
    for record in records:
        record["requests that fit"] = min(given.clients, fitting[record["serving"]])
    print(format_table(records))
    result = {
        "program": "compare_serving",
        "environment": environment(),
        "source": Path(given.source).name,
        "clients": given.clients,
        "prompt": given.prompt,
        "output": given.output,
        "rounds": given.rounds,
        "cache_bytes": cache_bytes,
        "runs": records,
    }
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def _prompts(tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Of so many tokens each, from different places of the held-out text."""
    ids = tokenizer("\n".join(held_out_text())).input_ids
    step = (len(ids) - length) // count
    return [ids[i * step : i * step + length] for i in range(count)]


def _of_transformers(
    model: PreTrainedModel, prompts: Sequence[list[int]], num_tokens: int
) -> Serve:
    settings = {
        "page_size": PAGE_TOKENS,
        "num_blocks": num_tokens // PAGE_TOKENS,
        "max_batch_tokens": 512,
        "allow_block_sharing": False,
        "use_cuda_graph": False,
    }

    def serve(num_new: int) -> int:
        wish = GenerationConfig(max_new_tokens=num_new, do_sample=False, eos_token_id=-1)
        wish.pad_token_id = 0
        outputs = model.generate_batch(
            list(prompts),
            generation_config=wish,
            continuous_batching_config=ContinuousBatchingConfig(**settings),
            progress_bar=False,
        )
        failed = [output.error for output in outputs.values() if output.error is not None]
        if failed or len(outputs) < len(prompts):
            raise RuntimeError(f"generate_batch answered {len(outputs)}: {failed[:1]}")
        return sum(len(output.generated_tokens) for output in outputs.values())

    return serve


def _of_engine(llm: LLM, prompts: Sequence[list[int]]) -> Serve:
    def serve(num_new: int) -> int:
        wish = SamplingParams(max_tokens=num_new, ignore_eos=True)
        return sum(len(output.token_ids) for output in llm.generate(list(prompts), wish))

    return serve


def _measured(
    servings: dict[str, Serve], rounds: int, clients: int, num_new: int
) -> list[dict[str, Any]]:
    """A row for each way to serve `clients` answers of `num_new` tokens each."""
    seconds: dict[str, list[float]] = {name: [] for name in servings}
    due = clients * num_new
    for serve in servings.values():
        serve(FIRST_OUTPUT)
    for _ in range(rounds):
        for name, serve in servings.items():
            began = time.perf_counter()
            found = serve(num_new)
            if found != due:
                raise RuntimeError(f"{name} gave {found} tokens and not {due}")
            seconds[name].append(time.perf_counter() - began)
    return [
        {
            "serving": name,
            "tokens/s": due / statistics.median(taken),
            "speed-up": statistics.median(
                theirs / ours for theirs, ours in zip(seconds[PEER], taken, strict=True)
            ),
        }
        for name, taken in seconds.items()
    ]


if __name__ == "__main__":
    raise SystemExit(main())
