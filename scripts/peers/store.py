"""Caches of transformers whose layers keep codes, and the three conventions of reading them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .codec import Codec, Codes
from .method import WINDOW, CacheReading, Held, Method, Reading, Subject, held_tensors

BYTES_16BIT = 2
Pair = tuple[Tensor, Tensor]
"""Keys and values, (1, J, T, D) each."""


class Store(ABC):
    """Keys and values of one layer, in a format of its own."""

    @abstractmethod
    def append(self, keys: Tensor, values: Tensor) -> None:
        """Take in those of the next T tokens, (1, J, T, D)."""

    @abstractmethod
    def decoded(self) -> Pair:
        """Those of all S tokens as they are read back, (1, J, S, D)."""

    @abstractmethod
    def stored(self) -> Any:
        """Tensors that are held, in containers."""


class CodecStore(Store):
    """Every token's key and value coded for itself. What was decoded is kept as well, as work space
    that an attention kernel would not need."""

    def __init__(self, key_codec: Codec, value_codec: Codec) -> None:
        self._codecs = key_codec, value_codec
        self._codes: list[tuple[Codes, Codes]] = []
        self._decoded: list[Pair] = []

    def append(self, keys: Tensor, values: Tensor) -> None:
        key_codec, value_codec = self._codecs
        codes = key_codec.encode(keys.float()), value_codec.encode(values.float())
        self._codes.append(codes)
        pair = key_codec.decode(codes[0]), value_codec.decode(codes[1])
        self._decoded = [joined([*self._decoded, (pair[0].to(keys.dtype), pair[1].to(keys.dtype))])]

    def decoded(self) -> Pair:
        return self._decoded[0]

    def stored(self) -> Any:
        return self._codes


def joined(pairs: list[Pair]) -> Pair:
    """Pairs one behind the other."""
    keys, values = zip(*pairs, strict=True)
    return torch.cat(keys, dim=-2), torch.cat(values, dim=-2)


class StoreLayer(DynamicLayer):
    """A layer of transformers' cache over a store.

    Its tensors are what was decoded; queries of a chunk see of the chunk itself what was decoded
    (`read`) or the exact states (`raw`). With `w32` they are given both side by side, and
    `windowed_attention` takes the exact ones of the last tokens.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, store: Store, convention: str) -> None:
        super().__init__()
        self.store, self.convention = store, convention
        self._exact: list[Pair] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> Pair:
        own = key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(*own)
        before: list[Pair] = [(self.keys, self.values)] if self.get_seq_length() else []
        self.store.append(*own)
        self.keys, self.values = self.store.decoded()
        if self.convention == "raw":
            return joined([*before, own])
        if self.convention == "w32":
            self._exact = [joined([*self._exact, own])]
            keys, values = self._exact[0]
            return torch.cat([keys, self.keys], -1), torch.cat([values, self.values], -1)
        return self.keys, self.values


def windowed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of one sequence that reads the last `WINDOW` tokens, the query's own among
    them, exactly, and all older ones as decoded: what decoding token by token sees.

    Args:
        query: (1, H, T, D).
        key, value: exact and decoded states side by side, (1, J, S, 2 D).
    """
    T, S = query.shape[2], key.shape[2]
    repeated = partial(Tensor.repeat_interleave, repeats=query.shape[1] // key.shape[1], dim=1)
    exact_key, decoded_key = repeated(key).chunk(2, dim=-1)
    exact_value, decoded_value = repeated(value).chunk(2, dim=-1)
    back = torch.arange(S - T, S)[:, None] - torch.arange(S)  # tokens from the query, (T, S)
    near = back < WINDOW
    scores = torch.where(
        near, query @ exact_key.transpose(-1, -2), query @ decoded_key.transpose(-1, -2)
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = (scores * scale).masked_fill(back < 0, float("-inf")).softmax(-1)
    output = (weights * near) @ exact_value + (weights * ~near) @ decoded_value
    return output.transpose(1, 2).contiguous(), None


WINDOWED = f"exact_window_{WINDOW}"
AttentionInterface.register(WINDOWED, windowed_attention)
AttentionMaskInterface.register(WINDOWED, sdpa_mask)


def store_method(
    name: str,
    family: str,
    convention: str,
    make: Callable[[PretrainedConfig, int], Store],
    package: str | None = None,
) -> Method:
    """The source model with a store per layer.

    Args:
        make: the store of a layer, by the model's config and the layer's number.
    """

    def start(subject: Subject) -> Callable[[], Reading]:
        config = subject.model.config

        def begin() -> Reading:
            layers = [
                StoreLayer(make(config, layer_idx), convention)
                for layer_idx in range(config.num_hidden_layers)
            ]
            attention = WINDOWED if convention == "w32" else "sdpa"
            return CacheReading(subject.model, Cache(layers=layers), held_by_stores, attention)

        return begin

    return Method(
        name=f"{name} {convention}",
        family=family,
        convention=convention,
        start=start,
        package=package,
    )


def held_by_stores(cache: Cache) -> Held:
    """Codes of all tokens; with an exact window, of all but the last ones, and those at 16 bits."""
    layers: list[Any] = cache.layers
    codes = held_tensors([layer.store.stored() for layer in layers])
    if layers[0].convention != "w32":
        return codes
    _, J, S, D = layers[0].keys.shape
    window = min(WINDOW, S)
    exact = len(layers) * window * J * 2 * D * BYTES_16BIT
    share = 1 - window / S
    return Held(
        here=round(codes.here * share) + exact,
        at_16bit=round(codes.at_16bit * share) + exact,
        exact=exact,
    )
