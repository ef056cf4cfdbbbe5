"""This package, with its default settings at each ratio, and with every token read by its row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from transformers import Cache

from cacheshrink_hybrid import CompressionConfig, cache_bytes, convert_model, make_cache

from .method import CacheReading, Held, Method, Reading, Subject, held_tensors

FAMILY = "cacheshrink_hybrid"
RATIOS = (2, 3, 4, 6, 8, 12, 16)
ALL_CODED: dict[str, Any] = {"exact_sinks": 0, "exact_window": 0}


def held_rows(cache: Cache) -> Held:
    """Of rows, and of the copies of exact tokens."""
    total = cache_bytes(cache).total
    exact = [copies.tensors() for copies in getattr(cache, "exact", {}).values()]
    return Held(here=total, at_16bit=total, exact=held_tensors(exact).here)


def _start(settings: dict[str, Any], subject: Subject) -> Callable[[], Reading]:
    model = copy.deepcopy(subject.model)
    config = CompressionConfig(**settings, **subject.calibration_settings)
    convert_model(model, config, statistics=subject.statistics)
    return lambda: CacheReading(model, make_cache(model), held_rows)


def methods(ratios: Sequence[float] = RATIOS) -> Iterator[Method]:
    for ratio in ratios:
        default = CompressionConfig(compression_ratio=ratio)
        coded = CompressionConfig(compression_ratio=ratio, **ALL_CODED)
        variants: dict[str, tuple[dict[str, Any], str]] = {
            "": ({}, "read" if default == coded else "exact")
        }
        if default != coded:
            variants[" all coded"] = (ALL_CODED, "read")
        for name, (more, convention) in variants.items():
            yield Method(
                name=f"ours {ratio:g}x{name}",
                family=FAMILY,
                convention=convention,
                start=partial(_start, {"compression_ratio": ratio, **more}),
            )
