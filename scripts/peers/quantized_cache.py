"""The caches of transformers: states as they are, and `QuantizedCache` by quanto, HQQ and fp8.

quanto and HQQ decode and code all tokens anew after each chunk, whose own tokens are exact until
then; fp8 does so in the first chunk only, which gives the scale of all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import QuantizedCache

from .method import SOURCE, CacheReading, Held, Method, Reading, Subject, held_tensors

QUANTO, HQQ = "optimum-quanto==0.2.7", "hqq==0.2.8.post1"
SETTINGS: dict[str, tuple[str | None, str, dict[str, Any]]] = {
    "quanto_4bit per channel": (QUANTO, "quanto", {"nbits": 4, "axis_key": -1}),
    "quanto_4bit": (QUANTO, "quanto", {"nbits": 4}),
    "quanto_2bit per channel": (QUANTO, "quanto", {"nbits": 2, "axis_key": -1}),
    "quanto_2bit": (QUANTO, "quanto", {"nbits": 2}),
    "hqq_4bit axis 1": (HQQ, "hqq", {"nbits": 4, "axis_key": 1, "axis_value": 1}),
    "hqq_4bit": (HQQ, "hqq", {"nbits": 4}),
    "hqq_2bit axis 1": (HQQ, "hqq", {"nbits": 2, "axis_key": 1, "axis_value": 1}),
    "hqq_2bit": (HQQ, "hqq", {"nbits": 2}),
    "fp8": (None, "fp8", {}),
}
"""Package, backend and options: for quanto and HQQ the best on real models, and the defaults."""


def held_states(cache: Cache) -> Held:
    """Of keys and values as they are."""
    return held_tensors([(layer.keys, layer.values) for layer in cache.layers])


def held_quantized(cache: Cache) -> Held:
    """Of what is coded, and of the tokens that wait to be."""
    layers: list[Any] = cache.layers
    return held_tensors(
        [
            (layer._quantized_keys, layer._quantized_values, layer.keys, layer.values)
            for layer in layers
        ]
    )


def _start(
    make: Callable[[PretrainedConfig], Cache], held: Callable[[Cache], Held], subject: Subject
) -> Callable[[], Reading]:
    return lambda: CacheReading(subject.model, make(subject.model.config), held)


def _plain(config: PretrainedConfig) -> Cache:
    return DynamicCache(config=config)


def _quantized(config: PretrainedConfig, backend: str, options: dict[str, Any]) -> Cache:
    return QuantizedCache(backend=backend, config=config, **options)


def source() -> Method:
    """What all are compared with."""
    return Method(
        name=SOURCE, family=SOURCE, convention="read", start=partial(_start, _plain, held_states)
    )


def methods() -> Iterator[Method]:
    for name, (package, backend, options) in SETTINGS.items():
        make = partial(_quantized, backend=backend, options=options)
        yield Method(
            name=name,
            family=f"{backend}, transformers",
            convention="raw" if package else "first",
            start=partial(_start, make, held_quantized),
            package=package,
        )
