"""KIVI: keys coded along tokens, channel by channel, values along channels, token by token; the
last tokens wait in 16 bits until there are enough of them.

Reference: Liu et al., KIVI, arXiv 2402.02750.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from .codec import Codec, Codes, MinMax
from .method import Method
from .store import Pair, Store, store_method

GROUP = 32
"""Tokens, or channels, that share a scale and a minimum."""


class PerChannel:
    """The format of keys: each channel of `GROUP` tokens in even steps."""

    def __init__(self, bits: int) -> None:
        self._along_tokens = MinMax(bits, GROUP)

    def encode(self, x: Tensor) -> Codes:
        return self._along_tokens.encode(x.transpose(-1, -2))

    def decode(self, codes: Codes) -> Tensor:
        return self._along_tokens.decode(codes).transpose(-1, -2)


class _Part:
    """Keys, or values: coded tokens, and those that wait."""

    def __init__(self, codec: Codec, first: Tensor) -> None:
        self.codec = codec
        self.codes: list[Codes] = []
        self.decoded = first[..., :0, :]
        self.waiting = first[..., :0, :].half()

    def append(self, x: Tensor) -> None:
        self.waiting = torch.cat([self.waiting, x.half()], dim=-2)

    def code_first(self, num_tokens: int) -> None:
        if num_tokens <= 0:
            return
        codes = self.codec.encode(self.waiting[..., :num_tokens, :].float())
        self.codes.append(codes)
        decoded = self.codec.decode(codes).to(self.decoded.dtype)
        self.decoded = torch.cat([self.decoded, decoded], dim=-2)
        self.waiting = self.waiting[..., num_tokens:, :].clone()

    def all(self) -> Tensor:
        return torch.cat([self.decoded, self.waiting.to(self.decoded.dtype)], dim=-2)


class KiviStore(Store):
    """Keys are coded when `residual` of them wait; the last `residual` values always do."""

    def __init__(self, bits: int, residual: int) -> None:
        self.bits, self.residual = bits, residual
        self._parts: list[_Part] = []

    def append(self, keys: Tensor, values: Tensor) -> None:
        if not self._parts:
            codecs: tuple[Codec, Codec] = PerChannel(self.bits), MinMax(self.bits, GROUP)
            self._parts = [_Part(codecs[0], keys), _Part(codecs[1], values)]
        key_part, value_part = self._parts
        key_part.append(keys)
        value_part.append(values)
        waiting = key_part.waiting.shape[-2]
        key_part.code_first(waiting - waiting % self.residual)
        value_part.code_first(value_part.waiting.shape[-2] - self.residual)

    def decoded(self) -> Pair:
        key_part, value_part = self._parts
        return key_part.all(), value_part.all()

    def stored(self) -> Any:
        return [(part.codes, part.waiting) for part in self._parts]


def _store(bits: int, residual: int, config: PretrainedConfig, layer_idx: int) -> Store:
    return KiviStore(bits, residual)


def methods() -> Iterator[Method]:
    for bits in (4, 2):
        for residual in (32, 128):
            make = partial(_store, bits, residual)
            yield store_method(f"kivi_{bits}bit residual {residual}", "KIVI", "raw", make)
