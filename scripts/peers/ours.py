"""This package, with its default settings at each ratio, and with every token read by its row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from cacheshrink_hybrid import (
    CompressionConfig,
    HybridCache,
    cache_bytes,
    convert_model,
    make_cache,
)
from cacheshrink_hybrid.pool.lifetime import FIRST, RECENT

from .method import CacheReading, Held, Method, Reading, Subject

FAMILY = "cacheshrink_hybrid"
RATIOS = (2, 3, 4, 6, 8, 12, 16)
ALL_CODED: dict[str, Any] = {"exact_sinks": 0, "exact_window": 0}


def held_rows(cache: HybridCache) -> Held:
    """Of all frames, and those of exact rows among them."""
    assert cache.store is not None
    total, frames = cache_bytes(cache).total, cache.store.statistics().frames.by_kind
    exact = sum(frames.get(kind, 0) for kind in (RECENT, FIRST)) * cache.store.pool.frame_bytes
    return Held(here=total, at_16bit=total, exact=exact)


def _start(settings: dict[str, Any], subject: Subject) -> Callable[[], Reading]:
    model = copy.deepcopy(subject.model)
    config = CompressionConfig(**settings, **subject.calibration_settings)
    convert_model(model, config, statistics=subject.statistics.serving(config))
    return lambda: CacheReading(model, make_cache(model), held_rows)


def methods(ratios: Sequence[float] = RATIOS) -> Iterator[Method]:
    for name, more, convention in (("", {}, "exact"), (" all coded", ALL_CODED, "read")):
        for ratio in ratios:
            yield Method(
                name=f"ours {ratio:g}x{name}",
                family=FAMILY,
                convention=convention,
                start=partial(_start, {"compression_ratio": ratio, **more}),
            )
