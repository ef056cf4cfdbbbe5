"""Decoding speed through the pooled cache and the dense one, side by side.

    python -m scripts.bench_cache [MODEL] [--context 2048] [--batches 1 8] [--steps 48]

MODEL is a source or converted model; without it, the model that ships with the package is converted
at 4x, with 16-bit latents and with few-bit rows. Steps of the two caches alternate, so that both
see the same machine; medians are compared. About two minutes on one core. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid import LatentCache, convert_to_mla, make_cache
from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.cli.arguments import load_any
from cacheshrink_hybrid.cli.report import circumstances
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.demo.corpus import training_text
from cacheshrink_hybrid.text_tables import format_table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=48)
    given = parser.parse_args(argv)
    records = [
        {"model": name, **compare(model, given.context, batch, given.steps)}
        for name, model in models(given.model)
        for batch in given.batches
    ]
    print(format_table(records))
    print(json.dumps({"threads": torch.get_num_threads(), **circumstances(), "runs": records}))
    return 0


def models(name: str | None) -> Iterator[tuple[str, PreTrainedModel]]:
    if name is not None:
        yield name, load_any(name, device="cpu", dtype="auto", trust_remote_code=False)[0]
        return
    for bits in (16, "auto"):
        model, _ = convert_to_mla(
            model_path(),
            compression_ratio=4.0,
            dtype=torch.float32,
            calibration_texts=training_text(),
            num_calibration_samples=16,
            metric="activation",
            cache_bits=bits,
            verbose=False,
        )
        yield f"shipped, 4x, cache_bits={bits}", model


@torch.no_grad()
def compare(model: PreTrainedModel, context: int, batch: int, steps: int) -> dict[str, Any]:
    """Median milliseconds per step, and the ratio of tokens per second."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    ids = torch.randint(3, vocabulary, (batch, context - steps), generator=generator)
    dense = LatentCache(config=model.config.get_text_config(decoder=True))
    caches = {"dense": dense, "pooled": make_cache(model)}
    argument = cache_argument(model.forward)
    for cache in caches.values():
        model(ids, **{argument: cache}, use_cache=True)
    times: dict[str, list[float]] = {name: [] for name in caches}
    for _ in range(steps):
        for name, cache in caches.items():
            positions = torch.full((batch, 1), cache.get_seq_length())
            began = time.perf_counter()
            model(ids[:, :1], **{argument: cache}, use_cache=True, position_ids=positions)
            times[name].append(time.perf_counter() - began)
    middle = {name: median(values[2:]) for name, values in times.items()}
    return {
        "batch": batch,
        "context": context,
        **{f"{name} ms/step": 1000 * value for name, value in middle.items()},
        "pooled / dense tokens/s": middle["dense"] / middle["pooled"],
        **{f"{name} MiB": cache.nbytes() / 2**20 for name, cache in caches.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
