"""Decoding after long contexts: a model, its conversions, and llama.cpp on the same weights.

    python -m scripts.bench_contexts SmolLM2 out/4x out/8x --gguf SmolLM2.gguf --threads 1

SmolLM2 is a model whose layers all attend, out/4x and out/8x are what `cacheshrink-hybrid convert`
made of it. Caches are filled with random content, which takes as long to read as any other, so that
no long prompt need be computed; llama.cpp, which cannot be filled from outside, computes one, up to
the positions that its model was trained on. Everything that is read lies in memory at once, and all
decode in turn, A B C A B C. The source's queries are folded by key head, so that SDPA reads its
cache once, which is faster than what transformers does by itself.

First, what decodes the conversions must agree with torch. What comes out is a table of medians:
milliseconds per step, tokens per second of each reader over those of the source in the neighbouring
run, and bytes of its cache. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cacheshrink_hybrid import HybridCache, load_mla_model, make_cache
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.latents.attention.cached_layer import CachedLayer
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import (
    GateError,
    cache_argument,
    cached_logits,
    common_arguments,
    empty_cache,
    environment,
    progress,
    quiet,
    report,
    tensors_in,
)
from .peers.llama_cpp import TYPES

FILL_TOKENS = 1024
"""Tokens that a cache is filled with at a time."""
AGREEMENT = 2e-2
"""Allowed difference of logits from those of torch, relative to the largest one: a code that falls
on the other side of a step changes them by some thousandths."""
FOLDED = "folded_sdpa"
Step = Callable[[], object]


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    torch.set_num_threads(given.threads)
    quiet()
    register_folded_attention()
    dtype = getattr(torch, given.dtype)
    source = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=dtype, attn_implementation=FOLDED
    ).eval()
    models: dict[str, PreTrainedModel] = {"source": source}
    for path in given.converted:
        model = load_mla_model(path, dtype=dtype)[0].eval()
        model.kernel_backend = given.backend
        check_agreement(path.name, model, given.seed)
        models[path.name] = model
    records = [
        record
        for batch in given.batches
        for context in given.contexts
        for record in measured(models, batch, context, given)
    ]
    paths = {
        "model": str(given.model),
        "converted": [path.name for path in given.converted],
        "gguf": None if given.gguf is None else given.gguf.name,
    }
    settings = {name: value for name, value in vars(given).items() if name != "json"}
    result: dict[str, Any] = {
        "program": "bench_contexts",
        "environment": environment(),
        "settings": settings | paths,
        "records": records,
        "growth": growth(records),
    }
    print(json.dumps(result["environment"], indent=2))
    print(format_table([_row(record) for record in records]))
    for record in result["growth"]:
        print(
            f"{record['reader']}, batch {record['batch']}: {record['ms_per_1000_tokens']:.2f} ms "
            f"more per 1,000 tokens of context, {record['over_source']:.2f} times the source's"
        )
    report(result, given.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench_contexts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="folder of the source")
    parser.add_argument("converted", type=Path, nargs="*", help="folders of conversions of it")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the model for llama.cpp")
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 2048, 8192, 32768])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument(
        "--num-new", type=int, default=8, help="steps of each before the next one's"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="of weights and of the source's cache")
    parser.add_argument("--backend", choices=get_args(Backend), default="auto")
    common_arguments(parser)
    return parser


def register_folded_attention() -> None:
    """Let models be loaded with `attn_implementation=FOLDED`."""
    ALL_ATTENTION_FUNCTIONS.register(FOLDED, folded_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(FOLDED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def folded_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA of queries (B, H, T, D) on keys and values (B, J, S, D); heads' outputs (B, T, H, D).

    A single query is folded to H / J queries of each key head, so that keys are read once.
    """
    B, H, T, D = query.shape
    if T > 1:
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return attend(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    folded = query.view(B, key.shape[1], -1, D)
    output = scaled_dot_product_attention(folded, key, value, attention_mask, scale=scaling)
    return output.view(B, H, 1, D).transpose(1, 2).contiguous(), None


@torch.inference_mode()
def check_agreement(name: str, model: PreTrainedModel, seed: int) -> None:
    """What decodes a converted model agrees with torch.

    Raises:
        GateError: it does not.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (1, 160), generator=generator)
    found = []
    for backend in ("torch", model.kernel_backend):
        cache = make_cache(model, backend=backend)
        cached_logits(model, ids[:, :128], 128, cache)
        found.append(cached_logits(model, ids[:, 128:], 1, cache)[0])
    difference = float((found[0] - found[1]).abs().max() / found[0].abs().max())
    if not difference <= AGREEMENT:
        raise GateError(f"{name} is decoded {difference:.1e} away from what torch decodes")


def measured(
    models: dict[str, PreTrainedModel], batch: int, context: int, given: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """One record per reader, after so many tokens."""
    progress(f"batch {batch}, {context} tokens")
    readers: dict[str, tuple[Step, int]] = {}
    for name, model in models.items():
        cache = filled(model, batch, context, given.seed)
        readers[name] = decoding_step(model, cache, batch), cache_bytes(cache)
    if given.gguf is not None and batch == 1:
        room = given.num_new * (given.repetitions + 1)
        for name in TYPES:
            reader = llama_step(given.gguf, name, context, room, given.threads)
            if reader is not None:
                readers[f"llama.cpp {name}"] = reader
    times: dict[str, list[float]] = {name: [] for name in readers}
    for repetition in range(given.repetitions + 1):
        for name, (step, _) in readers.items():
            began = time.perf_counter()
            for _ in range(given.num_new):
                step()
            if repetition:  # the first one is not counted
                times[name].append((time.perf_counter() - began) / given.num_new)
    for name, (_, held) in readers.items():
        quotients = sorted(
            base / one for base, one in zip(times["source"], times[name], strict=True)
        )
        yield {
            "reader": name,
            "batch": batch,
            "context": context,
            "ms_per_step": 1000 * median(times[name]),
            "ratio": median(quotients),
            "ratio_spread": [quotients[0], quotients[-1]],
            "cache_bytes": held,
        }


@torch.inference_mode()
def filled(model: PreTrainedModel, batch: int, context: int, seed: int) -> Cache:
    """A cache that holds so many tokens of random content."""
    torch.manual_seed(seed)
    cache = empty_cache(model)
    dtype, config = model.dtype, model.config
    modules = [m for m in model.modules() if isinstance(m, LatentAttention)]
    shape = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for begin in range(0, context, FILL_TOKENS):
        count = min(FILL_TOKENS, context - begin)
        if not modules:
            for layer in range(config.num_hidden_layers):
                made = torch.randn(2, batch, config.num_key_value_heads, count, shape, dtype=dtype)
                cache.update(made[0], made[1], layer)
        for module in modules:
            _append_random(module, cache, batch, count, dtype)
    return cache


def _append_random(
    module: LatentAttention, cache: Cache, batch: int, count: int, dtype: torch.dtype
) -> None:
    assert module.layer_idx is not None
    head, layer = module.head, CachedLayer(cache, module.layer_idx)
    slots = layer.slots(count)
    latent = torch.randn(batch, count, head.plan.kv_lora_rank, dtype=dtype)
    channels = rows = None
    if head.plan.keeps_exact:
        channels = torch.randn(batch, count, head.plan.exact_channels, dtype=dtype)
        rows = head.exact_rows(channels)
    _, held = layer.append(head.encoded(latent), rows)
    if channels is not None and rows is not None:
        layer.exact_view(head, channels, rows, torch.zeros(1, dtype=torch.long), slots, held)


def decoding_step(model: PreTrainedModel, cache: Cache, batch: int) -> Step:
    argument, token = cache_argument(model), torch.ones(batch, 1, dtype=torch.long)

    @torch.inference_mode()
    def step() -> object:
        return model(input_ids=token, **{argument: cache}, use_cache=True).logits

    return step


def cache_bytes(cache: Cache) -> int:
    """Bytes of what a cache holds; a pool counts the frames in use."""
    if isinstance(cache, HybridCache):
        return cache.nbytes()
    return sum(tensor.nbytes for layer in cache.layers for tensor in tensors_in(vars(layer)))


def llama_step(
    gguf: Path, type_name: str, context: int, room: int, threads: int
) -> tuple[Step, int] | None:
    """llama.cpp with keys and values of a type, after a text of so many tokens, and bytes of these;
    None beyond the positions that the model was trained on."""
    from llama_cpp import Llama, llama_model_n_ctx_train, llama_state_seq_get_size

    kind = TYPES[type_name]
    llama = Llama(
        str(gguf),
        n_ctx=context + room,
        n_threads=threads,
        n_threads_batch=threads,
        type_k=kind,
        type_v=kind,
        flash_attn=True,
        verbose=False,
    )
    if context > llama_model_n_ctx_train(llama.model):
        return None
    llama.eval([1 + i % 1000 for i in range(context)])
    held = int(llama_state_seq_get_size(llama.ctx, 0))
    return lambda: llama.eval([1]), held


def growth(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By reader and batch, how the time of a step grows from 2,048 tokens, or the shortest context
    beyond them, to the longest one."""
    found: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for record in records:
        if record["context"] >= 2048:
            points = found.setdefault((record["reader"], record["batch"]), [])
            points.append((record["context"], record["ms_per_step"]))
    slopes = {
        key: 1000 * (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
        for key, points in found.items()
        if len(points) > 1
    }
    return [
        {
            "reader": reader,
            "batch": batch,
            "ms_per_1000_tokens": slope,
            "over_source": slope / slopes["source", batch],
        }
        for (reader, batch), slope in slopes.items()
    ]


def _row(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "batch": record["batch"],
        "tokens": record["context"],
        "reader": record["reader"],
        "ms/step": record["ms_per_step"],
        "tokens/s over the source": record["ratio"],
        "MiB": record["cache_bytes"] / 2**20,
    }


if __name__ == "__main__":
    sys.exit(main())
