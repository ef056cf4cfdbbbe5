"""What the benchmark programs share: environment, texts, scoring through a cache, paired timing.

Needs torch and transformers alone, so that the same code measures other packages in environments of
their own.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    PreTrainedModel,
)

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENT_SEPARATOR = "<|endoftext|>"
IDENTITY_TOLERANCE = 2e-4
"""Allowed difference of logits at ratio 1, relative to the largest logit."""


class GateError(RuntimeError):
    """A result is not right, so its speed is not measured."""


def cache_argument(model: PreTrainedModel) -> str:
    """The name under which attention models take their cache, in this release and in the older one
    that a peer may need (whose environment does not have this package)."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every benchmark has."""
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON result here")


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Versions, machine and commit, for the record."""
    device = torch.device(device)
    record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--", "cacheshrink_hybrid", "scripts")),
    }
    return record


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=CHECKOUT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def report(result: dict[str, Any], path: Path | None) -> None:
    """Print the result as one line of JSON, and write it to `path` if that is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def quiet() -> None:
    """No progress bars of transformers, and no warnings below errors."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


# Texts


def read_documents(path: Path) -> list[str]:
    """Documents of a text file, separated by lines `<|endoftext|>`, else by blank lines."""
    text = path.read_text(encoding="utf-8")
    separator = DOCUMENT_SEPARATOR if DOCUMENT_SEPARATOR in text else "\n\n"
    return [document.strip() for document in text.split(separator) if document.strip()]


def spread(items: Sequence[str], number: int) -> list[str]:
    """`number` items, evenly spread over all of them."""
    number = min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]


# Scoring


def empty_cache(model: PreTrainedModel) -> Cache:
    """The cache that `generate` would make for `model`."""
    from cacheshrink_hybrid import make_cache
    from cacheshrink_hybrid.model.attached_plan import is_converted

    if not is_converted(model):
        return DynamicCache(config=model.config)

    return make_cache(model)


def dense_cache(model: PreTrainedModel) -> Cache:
    """A cache of plain tensors for `model`, so that bytes can be counted to the token; the pool of
    `empty_cache` holds whole frames of the same rows."""
    from cacheshrink_hybrid.caches import LatentCache
    from cacheshrink_hybrid.model.attached_plan import is_converted

    if not is_converted(model):
        return DynamicCache(config=model.config)

    return LatentCache(config=model.config.get_text_config(decoder=True))


def cached_logits(
    model: PreTrainedModel, ids: Tensor, chunk_length: int, cache: Cache | None = None
) -> tuple[Tensor, Cache]:
    """Logits (B, T, V) of `ids` (B, T), fed in chunks on top of a live cache, and that cache."""
    cache = empty_cache(model) if cache is None else cache
    argument = cache_argument(model)
    chunks = [
        model(input_ids=chunk, **{argument: cache}, use_cache=True).logits
        for chunk in ids.to(model.device).split(chunk_length, dim=1)
    ]
    return torch.cat(chunks, dim=1), cache


def token_windows(tokenizer, texts: Sequence[str], max_length: int) -> list[Tensor]:
    """Token ids (1, T) of each text from its start, with the tokenizer's own first token, T at most
    `max_length`."""
    rows = [torch.tensor([tokenizer(text).input_ids[:max_length]]) for text in texts]
    return [ids for ids in rows if ids.shape[1] > 1]


def perplexity(
    model: PreTrainedModel, windows: Sequence[Tensor], chunk_length: int
) -> tuple[float, int]:
    """Perplexity of all predicted tokens of `windows` (1, T) each, and their number."""
    losses = [loss for window in window_losses(model, windows, chunk_length) for loss in window]
    return math.exp(math.fsum(losses) / len(losses)), len(losses)


@torch.inference_mode()
def window_losses(
    model: PreTrainedModel, windows: Sequence[Tensor], chunk_length: int
) -> list[list[float]]:
    """Loss in nats of every predicted token of `windows` (1, T) each, through a live cache."""
    found = []
    for ids in windows:
        logits, _ = cached_logits(model, ids[:, :-1], chunk_length)
        labels = ids[0, 1:].to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits[0].float(), labels, reduction="none")
        found.append(losses.double().tolist())
    return found


@torch.inference_mode()
def live_bytes_per_token(model: PreTrainedModel, num_tokens: int, chunk_length: int = 64) -> float:
    """Bytes of all storages that a cache's layers hold after `num_tokens` tokens, per token.

    Raises:
        GateError: they hold nothing, so that nothing was read back either.
    """
    ids = torch.arange(num_tokens)[None] % model.config.vocab_size
    _, cache = cached_logits(model, ids, chunk_length, dense_cache(model))
    storages = {}
    for layer in cache.layers:
        for tensor in tensors_in(vars(layer)):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    if not storages:
        raise GateError(f"the cache of {type(model).__name__} holds nothing of {num_tokens} tokens")
    return sum(storages.values()) / num_tokens


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors with elements in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        if value.numel():
            yield value
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in tensors_in(item))
    elif isinstance(value, (list, tuple)):
        yield from (tensor for item in value for tensor in tensors_in(item))


@torch.inference_mode()
def relative_difference(
    model: PreTrainedModel, source: PreTrainedModel, ids: Tensor, chunk_lengths: Sequence[int]
) -> float:
    """Largest difference of logits through the cache, relative to the source's largest logit."""
    worst = 0.0
    for chunk_length in chunk_lengths:
        expected, _ = cached_logits(source, ids, chunk_length)
        logits, _ = cached_logits(model, ids, chunk_length)
        difference = (logits - expected).abs().max() / expected.abs().max()
        worst = max(worst, float(difference))
    return worst


# Speed


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of every repetition."""

    prefill: list[float]
    decode: list[float]

    def medians(self) -> dict[str, float]:
        return {
            "prefill_tokens_per_second": statistics.median(self.prefill),
            "decode_tokens_per_second": statistics.median(self.decode),
        }


def ratios_to(speed: Speed, base: Speed) -> dict[str, float]:
    """Medians over repetitions of the speed relative to the neighbouring run of `base`."""
    record = {}
    for name in ("prefill", "decode"):
        pairs = zip(getattr(speed, name), getattr(base, name), strict=True)
        quotients = sorted(one / other for one, other in pairs)
        record[f"{name}_ratio"] = statistics.median(quotients)
        record[f"{name}_ratio_spread"] = [quotients[0], quotients[-1]]
    return record


@torch.inference_mode()
def interleaved_speed(
    models: dict[str, PreTrainedModel],
    num_context: int,
    num_new: int,
    repetitions: int,
    seed: int = 0,
) -> dict[str, Speed]:
    """Time prefill of `num_context` tokens and greedy decoding of `num_new` more, A B A B ...

    One repetition that is not counted comes first.
    """
    vocab_size = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (1, num_context), generator=generator)
    speeds = {name: Speed([], []) for name in models}
    for repetition in range(repetitions + 1):
        for name, model in models.items():
            prefill, decode = _time_once(model, ids.to(model.device), num_new)
            if repetition:
                speeds[name].prefill.append(num_context / prefill)
                speeds[name].decode.append(num_new / decode)
    return speeds


def _time_once(model: PreTrainedModel, ids: Tensor, num_new: int) -> tuple[float, float]:
    """Seconds of one prefill and of `num_new` decoding steps after it."""
    cache = empty_cache(model)
    argument = cache_argument(model)
    started = _now(model.device)
    logits = model(input_ids=ids, **{argument: cache}, use_cache=True, logits_to_keep=1).logits
    prefilled = _now(model.device)
    for _ in range(num_new):
        token = logits[:, -1:].argmax(-1)
        logits = model(input_ids=token, **{argument: cache}, use_cache=True).logits
    return prefilled - started, _now(model.device) - prefilled


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# One package on one checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """How a package converts, saves and loads.

    Attributes:
        convert: (checkpoint, method, ratio, texts, max_length) -> (model, tokenizer).
        save: (model, tokenizer, directory).
        load: directory -> model.
    """

    name: str
    convert: Callable[[str, str, float, Sequence[str], int], tuple[PreTrainedModel, Any]]
    save: Callable[[PreTrainedModel, Any, Path], None]
    load: Callable[[Path], PreTrainedModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to measure on one checkpoint; travels to another environment as JSON.

    Attributes:
        runs: (method, ratio) pairs.
        evaluation: texts for perplexity; none to measure speed only.
        contexts: context lengths at which speed is measured.
    """

    checkpoint: str
    runs: list[tuple[str, float]]
    calibration: list[str]
    evaluation: list[str]
    max_length: int
    chunk_length: int
    contexts: list[int]
    num_new: int
    repetitions: int
    threads: int
    seed: int


def measure_package(job: Job, package: Package) -> list[dict[str, Any]]:
    """One record for the source model, then one per run of `package`."""
    torch.set_num_threads(job.threads)
    source = AutoModelForCausalLM.from_pretrained(job.checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint)
    windows = token_windows(tokenizer, job.evaluation, job.max_length)
    size = sum(file.stat().st_size for file in Path(job.checkpoint).glob("*.safetensors"))
    records = [{"method": "source", "ratio": 1.0, "checkpoint_bytes": size}]
    records[0] |= _quality(source, windows, job)
    for method, ratio in job.runs:
        progress(f"{package.name}: {Path(job.checkpoint).name}, {method} {ratio:g}x")
        torch.manual_seed(job.seed)
        started = time.perf_counter()
        model, own_tokenizer = package.convert(
            job.checkpoint, method, ratio, job.calibration, job.max_length
        )
        model.eval()
        record = {
            "method": method,
            "ratio": ratio,
            "convert_seconds": time.perf_counter() - started,
        }
        record |= _quality(model, windows, job)
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory, "model")
            package.save(model, own_tokenizer, target)
            record["checkpoint_bytes"] = sum(
                file.stat().st_size for file in target.glob("*.safetensors")
            )
            ids = torch.arange(32)[None] % source.config.vocab_size
            record["reload_difference"] = relative_difference(
                package.load(target), model, ids, [32]
            )
        for context in job.contexts:
            pair = {"source": source, "converted": model}
            speeds = interleaved_speed(pair, context, job.num_new, job.repetitions, job.seed)
            record.setdefault("speed", {})[str(context)] = (
                speeds["converted"].medians()
                | ratios_to(speeds["converted"], speeds["source"])
                | {f"source_{k}": v for k, v in speeds["source"].medians().items()}
            )
        records.append(record)
    return records


def _quality(model: PreTrainedModel, windows: list[Tensor], job: Job) -> dict[str, Any]:
    record: dict[str, Any] = {
        "live_bytes_per_token": live_bytes_per_token(model, job.max_length, job.chunk_length)
    }
    if windows:
        record["perplexity"], record["num_tokens"] = perplexity(model, windows, job.chunk_length)
    return record
