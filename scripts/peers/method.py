"""The nouns of the comparison: a method, the model that it is tried on, and one reading of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from cacheshrink_hybrid import CompressionConfig
from cacheshrink_hybrid.calibration.sequences import CalibrationSequences
from cacheshrink_hybrid.calibration.text import calibration_sequences
from cacheshrink_hybrid.conversion.statistics import SharedStatistics

from ..benchmark import cache_argument, cached_logits

CONVENTIONS = {
    "read": "everything read back",
    "raw": "own chunk exact",
    "w32": "last 32 tokens exact",
    "first": "first chunk exact",
    "exact": "first and last tokens exact",
}
"""What the queries of a chunk see of the newest tokens. It matters more than the format: compare
methods of one convention. What a token-by-token decoder reads is `read` or `w32`."""
WINDOW = 32
"""Tokens of `w32`."""
SHOWN_SEQUENCES = 8
"""Calibration sequences whose states are shown to methods that look at channels."""
SOURCE = "source"
"""Name of the method that keeps keys and values as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes of a cache's content, all layers.

    Attributes:
        here: in the memory of this process, with its float32 model.
        at_16bit: the same for a model of 16 bits, whose scales and exact states take 2 bytes.
        exact: of `at_16bit`, of tokens that are kept exact.
    """

    here: int
    at_16bit: int
    exact: int = 0


class Reading(Protocol):
    """One text being read from its start."""

    def feed(self, ids: Tensor) -> Tensor:
        """Logits (T, V) of the next T tokens (T,)."""
        ...

    def held(self) -> Held: ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A source model, and what methods may learn from before they are measured.

    Attributes:
        folder: where the model lies.
        calibration: texts of about equal length.
        calibration_length: tokens taken of each.
        gguf: the same model for llama.cpp; None without.
        window_length: tokens that will be read at most.
        tuning_steps: of methods that are fine-tuned.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    calibration: list[str]
    calibration_length: int
    gguf: Path | None
    window_length: int
    tuning_steps: int
    threads: int
    seed: int

    @property
    def calibration_settings(self) -> dict[str, Any]:
        """What `CompressionConfig` calls the amount of text, and the seed."""
        return {
            "num_calibration_samples": len(self.calibration),
            "max_calibration_length": self.calibration_length,
            "seed": self.seed,
        }

    @cached_property
    def sequences(self) -> CalibrationSequences:
        config = CompressionConfig(**self.calibration_settings)
        return calibration_sequences(self.tokenizer, self.calibration, config, model=self.model)

    @cached_property
    @torch.inference_mode()
    def states(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (1, J, S, D) of every layer, on the first sequences one behind the other:
        enough to see which channels lie out."""
        read = []
        for ids in self.sequences.texts[:SHOWN_SEQUENCES]:
            cache = DynamicCache(config=self.model.config)
            cached_logits(self.model, ids, ids.shape[1], cache)
            read.append([(layer.keys, layer.values) for layer in cache.layers])
        return [
            (torch.cat([k for k, _ in layer], dim=-2), torch.cat([v for _, v in layer], dim=-2))
            for layer in zip(*read, strict=True)
        ]

    @cached_property
    def statistics(self) -> SharedStatistics:
        """What our conversions share."""
        config = CompressionConfig(**self.calibration_settings)
        return SharedStatistics(self.model, config, self.sequences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: unique; `--methods` selects by it.
        family: what belongs together in the picture.
        convention: of `CONVENTIONS`.
        start: prepares the method on a model, and gives what begins a reading.
        package: pin of the package that it needs; None for none beside ours.
        base: name of the method that its loss is compared with.
    """

    name: str
    family: str
    convention: str
    start: Callable[[Subject], Callable[[], Reading]]
    package: str | None = None
    base: str = SOURCE


class CacheReading:
    """A model of transformers that reads on top of a cache.

    Args:
        held: counts what the cache holds.
        attention: the attention function that the cache needs; the model has its own again after
            each chunk.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: Cache,
        held: Callable[[Cache], Held],
        attention: str = "sdpa",
    ) -> None:
        self.model, self.cache, self._held = model, cache, held
        self.attention = attention
        self._argument = cache_argument(model)

    def feed(self, ids: Tensor) -> Tensor:
        given: dict[str, Any] = {self._argument: self.cache}
        own = self.model.config._attn_implementation
        if own != self.attention:
            self.model.set_attn_implementation(self.attention)
        try:
            return self.model(input_ids=ids[None], use_cache=True, **given).logits[0]
        finally:
            if own != self.attention:
                self.model.set_attn_implementation(own)

    def held(self) -> Held:
        return self._held(self.cache)


def held_tensors(value: Any) -> Held:
    """Bytes of all tensors within nested containers, each once."""
    tensors = {id(tensor): tensor for tensor in _tensors(value)}.values()
    here = sum(tensor.nbytes for tensor in tensors)
    wide = sum(tensor.nbytes for tensor in tensors if tensor.dtype == torch.float32)
    return Held(here=here, at_16bit=here - wide // 2)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if type(value) is not Tensor and hasattr(value, "__tensor_flatten__"):
            for name in value.__tensor_flatten__()[0]:  # a wrapper: what it is made of
                yield from _tensors(getattr(value, name))
        else:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
