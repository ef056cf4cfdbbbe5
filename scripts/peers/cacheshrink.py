"""cacheshrink 0.1.5, by its package: latents by rank alone, at 16 bits."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import Cache, DynamicCache

from .method import CacheReading, Held, Method, Reading, Subject, held_tensors

PACKAGE = "cacheshrink==0.1.5"
RATIOS = (2, 4, 8)


def held_latents(cache: Cache) -> Held:
    return held_tensors([vars(layer) for layer in cache.layers])


def _start(ratio: float, subject: Subject) -> Callable[[], Reading]:
    from cacheshrink import convert_to_mla

    gc.collect()
    torch.manual_seed(subject.seed)
    # The peer prints while it works, and standard output is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        model, _ = convert_to_mla(
            str(subject.folder),
            compression_ratio=ratio,
            compression_method="separate",
            calibration_texts=subject.calibration,
            num_calibration_samples=len(subject.calibration),
            max_calibration_length=subject.calibration_length,
            dtype=torch.float32,
            device="cpu",
            trust_remote_code=False,
            verbose=False,
        )
    model.eval()

    def begin() -> Reading:
        cache: Any = DynamicCache(config=subject.model.config)
        # Other attention functions hand it masks that it cannot use.
        return CacheReading(model, cache, held_latents, attention="eager")

    return begin


def methods() -> Iterator[Method]:
    for ratio in RATIOS:
        yield Method(
            name=f"cacheshrink {ratio}x",
            family="cacheshrink",
            convention="read",
            start=partial(_start, ratio),
            package=PACKAGE,
        )
