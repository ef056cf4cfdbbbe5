"""Requests for the allocator study and the engine: seeded synthetic traces, and recorded ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request.

    Attributes:
        arrival: tick at which it comes; a tick is one decode step.
        prompt_tokens, output_tokens: lengths, at least 1.
    """

    arrival: int
    prompt_tokens: int
    output_tokens: int


def _requests(prompts, outputs, arrivals=None) -> tuple[Request, ...]:
    arrivals = range(len(prompts)) if arrivals is None else arrivals
    return tuple(
        Request(
            arrival=int(arrival), prompt_tokens=max(1, int(prompt)), output_tokens=max(1, int(out))
        )
        for arrival, prompt, out in zip(arrivals, prompts, outputs, strict=True)
    )


def uniform_short(random: np.random.Generator, count: int) -> tuple[Request, ...]:
    """Prompts of 128 to 1024 tokens, outputs of 64 to 256."""
    return _requests(random.integers(128, 1025, count), random.integers(64, 257, count))


def mixed_long(random: np.random.Generator, count: int) -> tuple[Request, ...]:
    """Four prompts of 512 to 4k tokens for each of 16k to 64k; outputs of 128 to 512."""
    short = random.integers(512, 4097, count)
    long = random.integers(16384, 65537, count)
    prompts = np.where(random.random(count) < 0.8, short, long)
    return _requests(prompts, random.integers(128, 513, count))


def agentic_burst(random: np.random.Generator, count: int) -> tuple[Request, ...]:
    """Log-normal prompts around 5k tokens, arriving in bursts of ten per tick."""
    prompts = np.clip(random.lognormal(8.5, 1.0, count), 64, 65536)
    arrivals = np.cumsum(random.exponential(0.1, count))
    return _requests(prompts, random.integers(64, 257, count), arrivals)


def chat(random: np.random.Generator, count: int) -> tuple[Request, ...]:
    """Chat-like lengths: median prompts of 25 tokens with a long tail, outputs around 90; one
    request in twenty carries a document of 16k to 64k tokens."""
    prompts = np.clip(random.lognormal(3.2, 1.7, count), 16, 4096)
    documents = random.integers(16384, 65537, count)
    prompts = np.where(random.random(count) < 0.05, documents, prompts)
    outputs = np.clip(random.lognormal(4.5, 1.0, count), 32, 2048)
    return _requests(prompts, outputs)


def churn(random: np.random.Generator, count: int) -> tuple[Request, ...]:
    """Chats with a burst of ten documents of 16k to 64k tokens after every 200 of them, so that
    the balance between tokens and states swings."""
    chats = chat(random, count)
    documents = random.integers(16384, 65537, count)
    prompts = [
        int(documents[i]) if i % 210 >= 200 else min(request.prompt_tokens, 4096)
        for i, request in enumerate(chats)
    ]
    return _requests(prompts, [request.output_tokens for request in chats])


SYNTHETIC: dict[str, Callable[[np.random.Generator, int], tuple[Request, ...]]] = {
    "uniform_short": uniform_short,
    "mixed_long": mixed_long,
    "agentic_burst": agentic_burst,
    "chat": chat,
    "churn": churn,
}


def synthetic_trace(name: str, count: int, seed: int = 0) -> tuple[Request, ...]:
    """A seeded trace of `count` requests.

    Raises:
        ConfigError: an unknown name, or no requests.
    """
    if name not in SYNTHETIC or count < 1:
        raise ConfigError(
            f"trace {name!r} with {count} requests cannot be made; choose one of "
            f"{', '.join(SYNTHETIC)} and a count >= 1"
        )
    return SYNTHETIC[name](np.random.default_rng(seed), count)


def read_trace(path: Path, count: int | None = None, seed: int = 0) -> tuple[Request, ...]:
    """A recorded trace: one request per tick in recorded order, the first `count` of them.

    Three formats are known: CSV with `ContextTokens` and `GeneratedTokens` (Azure), JSON lines with
    `input_length` and `output_length` (Mooncake), and a JSON list with `prompt_tokens` (lengths of
    prompts alone; outputs are then drawn around 90 tokens).

    Raises:
        ConfigError: no such file, or none of these formats.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is no file; give the path of a trace")
    prompts: Sequence[int]
    outputs: Sequence[int]
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            prompts = [int(row["ContextTokens"]) for row in rows]
            outputs = [int(row["GeneratedTokens"]) for row in rows]
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            prompts = [line["input_length"] for line in lines]
            outputs = [line["output_length"] for line in lines]
        else:
            prompts = [entry["prompt_tokens"] for entry in json.loads(path.read_text("utf-8"))]
            drawn = np.random.default_rng(seed).lognormal(4.5, 1.0, len(prompts))
            outputs = np.clip(drawn, 32, 2048).astype(int).tolist()
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is no trace that is known ({error!r}); see read_trace for the formats"
        ) from error
    return _requests(prompts[:count], outputs[:count])
