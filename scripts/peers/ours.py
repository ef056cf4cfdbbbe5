"""This package, with its default settings at each ratio, fine-tuned, and with every token read by
its row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from cacheshrink_hybrid import (
    CompressionConfig,
    HybridCache,
    cache_bytes,
    convert_model,
    make_cache,
)
from cacheshrink_hybrid.pool.lifetime import FIRST, RECENT
from cacheshrink_hybrid.precision import multiplies_bfloat16
from cacheshrink_hybrid.training import MLATrainer

from ..figures.peers import TUNED
from .method import CacheReading, Held, Method, Reading, Subject

FAMILY = "cacheshrink_hybrid"
RATIOS = (2, 3, 4, 6, 8, 12, 16)
TUNED_RATIOS = (8, 16)
"""Those that are measured after fine-tuning too."""
TUNING_RATE = 0.3
"""Of the default step sizes, which are for batches of several sequences."""
ALL_CODED: dict[str, Any] = {"exact_sinks": 0, "exact_window": 0}


def held_rows(cache: HybridCache) -> Held:
    """Of all frames, and those of exact rows among them."""
    assert cache.store is not None
    total, frames = cache_bytes(cache).total, cache.store.statistics().frames.by_kind
    exact = sum(frames.get(kind, 0) for kind in (RECENT, FIRST)) * cache.store.pool.frame_bytes
    return Held(here=total, at_16bit=total, exact=exact)


def _converted(settings: dict[str, Any], subject: Subject) -> PreTrainedModel:
    model = copy.deepcopy(subject.model)
    config = CompressionConfig(**settings, **subject.calibration_settings)
    convert_model(model, config, statistics=subject.statistics.serving(config))
    return model


def _start(settings: dict[str, Any], subject: Subject) -> Callable[[], Reading]:
    model = _converted(settings, subject)
    return lambda: CacheReading(model, make_cache(model), held_rows)


def _start_tuned(settings: dict[str, Any], subject: Subject) -> Callable[[], Reading]:
    """Fine-tuned on all of the text that calibration took its sequences from, to say of it what the
    source says: taught by the text itself, it would lie below the source on text of that kind.
    Steps of one sequence, in bfloat16 where that is faster."""
    model = _converted(settings, subject)
    trainer = MLATrainer(
        model,
        subject.tokenizer,
        teacher_model=subject.model,
        distillation_alpha=1.0,
        max_steps=subject.tuning_steps,
        learning_rate_scale=TUNING_RATE,
        batch_size=1,
        max_length=subject.calibration_length,
        bf16=multiplies_bfloat16(),
        seed=subject.seed,
    )
    trainer.train(subject.calibration)
    return lambda: CacheReading(model, make_cache(model), held_rows)


def methods(ratios: Sequence[float] = RATIOS) -> Iterator[Method]:
    yield from _methods(ratios, "", _start)
    yield from _methods([r for r in ratios if r in TUNED_RATIOS], f" {TUNED}", _start_tuned)
    yield from _methods(ratios, " all coded", _start, convention="read", **ALL_CODED)


def _methods(ratios: Sequence[float], name: str, start, convention: str = "exact", **settings):
    for ratio in ratios:
        yield Method(
            name=f"ours {ratio:g}x{name}",
            family=FAMILY,
            convention=convention,
            start=partial(start, {"compression_ratio": ratio, **settings}),
        )
