"""cacheshrink 0.1.5, by its package: latents by rank alone, at 16 bits.

It looks for two things where transformers had them once, and goes on without: its cache, by a name
before 5.24, and the base of the rotation, of which it supposes 10,000 for what is read back. Both
are given to it.
"""

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


def _by_former_name(
    module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    return args, {**kwargs, "past_key_values": kwargs.get("cache"), "use_cache": True}


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
    for module in model.modules():
        if type(module).__module__.startswith("cacheshrink.model_handlers"):
            module.register_forward_pre_hook(_by_former_name, with_kwargs=True)
            module.mla._rope_config["base"] = model.config.rope_parameters["rope_theta"]

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
