"""Speed of prefill and decoding of converted models, next to their source in the same process.

    python -m scripts.bench_decode --json bench_decode.json
    python -m scripts.bench_decode --contexts 512 --layers 2 --repetitions 2 --num-new 8 --threads 1

The second line is for a laptop in a hurry. Models are random, which costs the same time as trained
ones: a Llama, whose rotated keys are rebuilt from the latents that it reads, and a SmolLM3 without
RoPE, whose queries are projected into the latent instead; `--backend` says what decodes, compiled
functions by default, where numba is installed. Both are converted at `--ratio` by every
method and width of `--methods` (`joint:16`, `rotate:auto`, ...; what needs RoPE is left out without
it), and read the same contexts as their sources, A B A B, batch 1; on CUDA where there is a device,
else on CPU.

First, ratio 1 must give the source's logits, in one pass and token by token. What comes out is a
table of medians in tokens per second, the ratio to the source, the bytes that one decoding step
must read at least (weights and cache) with the bandwidth that this makes, and, as last line, one
JSON object. `--profile` prints where decoding spends its time instead.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from cacheshrink_hybrid import CompressionConfig, convert_model, plan_of
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.methods import LATENT_KINDS
from cacheshrink_hybrid.model.attached_plan import is_converted
from cacheshrink_hybrid.text_tables import format_table

from .benchmark import (
    IDENTITY_TOLERANCE,
    GateError,
    Speed,
    cache_argument,
    cached_logits,
    common_arguments,
    environment,
    interleaved_speed,
    live_bytes_per_token,
    quiet,
    ratios_to,
    relative_difference,
    report,
)

TARGETS = {
    ("nope", "joint:16", "decode_ratio"): 0.8,
    ("nope", "joint:auto", "decode_ratio"): 0.4,
    ("nope", "joint:16", "prefill_ratio"): 0.8,
    ("rope", "joint:16", "decode_ratio"): 0.41,
    ("rope", "joint:16", "prefill_ratio"): 0.8,
    ("rope", "per_head:16", "decode_ratio"): 0.6,
    ("rope", "rotate:16", "decode_ratio"): 0.6,
}
"""Least speed relative to the source at the longest context."""
DEFAULT_METHODS = ["joint:16", "joint:auto", "per_head:16", "rotate:16"]


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    quiet()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    records = []
    for position in args.positions:
        source = random_model(position, args).to(device, getattr(torch, args.dtype))
        check_identity(position, args, device)
        for method in methods_for(position, args):
            converted = copy.deepcopy(source)
            convert(converted, args.ratio, method, args)
            converted.kernel_backend = args.backend
            if args.profile:
                print_profile(converted, args)
                continue
            for context in args.contexts:
                pair = {"source": source, "converted": converted}
                speeds = interleaved_speed(pair, context, args.num_new, args.repetitions, args.seed)
                records += [
                    {"positions": position, "method": name, "context": context}
                    | measures(pair[key], speeds[key], speeds["source"], context, args.num_new)
                    for key, name in (("source", "source"), ("converted", method))
                ]
    if args.profile:
        return 0
    result = {
        "program": "bench_decode",
        "environment": environment(device),
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "profile")},
        "records": records,
        "missed": missed_targets(records),
    }
    print(json.dumps(result["environment"], indent=2))
    print(format_table([table_row(record) for record in records]))
    for line in result["missed"]:
        print(f"missed: {line}")
    report(result, args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench_decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--num-new", type=int, default=32, help="tokens decoded for timing")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--ratio", type=float, default=2.0)
    parser.add_argument(
        "--methods", nargs="+", default=DEFAULT_METHODS, help="METHOD:CACHE_BITS of the conversion"
    )
    parser.add_argument(
        "--positions", nargs="+", choices=["rope", "nope"], default=["rope", "nope"]
    )
    parser.add_argument("--metric", choices=["activation", "none"], default="activation")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=1408)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--backend", choices=get_args(Backend), default="auto", help="what decodes from the pool"
    )
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--profile", action="store_true", help="profile the longest context")
    common_arguments(parser)
    return parser


def random_model(position: str, args: argparse.Namespace, layers: int | None = None):
    """A random model of the asked shape, with RoPE (`rope`) or without any (`nope`)."""
    torch.manual_seed(args.seed)
    layers = args.layers if layers is None else layers
    shape = {
        "hidden_size": args.hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "intermediate_size": args.intermediate,
        "vocab_size": args.vocab,
        "max_position_embeddings": 2 * max(args.contexts),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if position == "rope":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    return SmolLM3ForCausalLM(SmolLM3Config(**shape, no_rope_layers=[0] * layers)).eval()


def methods_for(position: str, args: argparse.Namespace) -> list[str]:
    """The methods that a model with (`rope`) or without (`nope`) RoPE can be converted by."""
    if position == "rope":
        return list(args.methods)
    kinds = {m: LATENT_KINDS.get(m.partition(":")[0]) for m in args.methods}
    return [m for m, kind in kinds.items() if kind is None or not kind.rotary_only]


def convert(model: PreTrainedModel, ratio: float, name: str, args: argparse.Namespace) -> None:
    method, _, bits = name.partition(":")
    generator = torch.Generator().manual_seed(args.seed)
    ids = torch.randint(model.config.vocab_size, (4, 1, 256), generator=generator)
    config = CompressionConfig(
        compression_ratio=ratio,
        compression_method=method,
        metric=args.metric,
        cache_bits=int(bits) if bits.isdigit() else bits,
    )
    convert_model(model, config, list(ids))


def check_identity(position: str, args: argparse.Namespace, device: torch.device) -> None:
    """Ratio 1 gives the source's logits; two layers in float32 are enough to see it.

    Raises:
        GateError: otherwise.
    """
    source = random_model(position, args, layers=2).to(device)
    ids = torch.randint(source.config.vocab_size, (1, 48))
    for method in methods_for(position, args):
        if not method.endswith(":16"):
            continue
        exact = copy.deepcopy(source)
        convert(exact, 1.0, method, args)
        difference = relative_difference(exact, source, ids, [1, 48])
        if difference > IDENTITY_TOLERANCE:
            raise GateError(f"ratio 1 changes the logits of {position} by {difference:.2e}")


def measures(
    model: PreTrainedModel, speed: Speed, base: Speed, context: int, num_new: int
) -> dict[str, Any]:
    """Medians, ratios, and the least traffic of one decoding step."""
    record: dict[str, Any] = speed.medians() | ratios_to(speed, base)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    cache = live_bytes_per_token(model, 64) * (context + num_new / 2)
    record["read_mode"] = "source"
    if is_converted(model):
        record["read_mode"] = "/".join(sorted({p.read_mode for p in plan_of(model).latents}))
    record["decode_bytes_per_step"] = round(weights + cache)
    record["decode_gb_per_second"] = (weights + cache) * record["decode_tokens_per_second"] / 1e9
    return record


def missed_targets(records: list[dict[str, Any]]) -> list[str]:
    longest = max(record["context"] for record in records)
    return [
        f"{position} {record['method']} {name} {record[name]:.2f} < {target} at {longest}"
        for record in records
        for (position, method, name), target in TARGETS.items()
        if record["context"] == longest
        and record["positions"] == position
        and record["method"] == method
        and record[name] < target
    ]


def table_row(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "positions": record["positions"],
        "method": record["method"],
        "read": record["read_mode"],
        "context": record["context"],
        "prefill tok/s": record["prefill_tokens_per_second"],
        "prefill /source": record["prefill_ratio"],
        "decode tok/s": record["decode_tokens_per_second"],
        "decode /source": record["decode_ratio"],
        "MB/step": record["decode_bytes_per_step"] / 1e6,
        "GB/s": record["decode_gb_per_second"],
    }


def print_profile(model: PreTrainedModel, args: argparse.Namespace) -> None:
    """Time by operator of decoding at the longest context."""
    ids = torch.randint(model.config.vocab_size, (1, max(args.contexts)), device=model.device)
    argument = cache_argument(model)
    with torch.inference_mode():
        _, cache = cached_logits(model, ids, ids.shape[1])
        kinds = [ProfilerActivity.CPU]
        if model.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        with profile(activities=kinds, record_shapes=True) as recorded:
            for _ in range(args.num_new):
                model(input_ids=ids[:, :1], **{argument: cache}, use_cache=True)
    averages = recorded.key_averages(group_by_input_shape=True)
    print(averages.table("self_cpu_time_total", row_limit=25, max_shapes_column_width=60))


if __name__ == "__main__":
    sys.exit(main())
