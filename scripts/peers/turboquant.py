"""TurboQuant as vLLM ships it: keys rotated by a Hadamard matrix and coded by the best levels of a
normal distribution, values in even steps.

Reference: Zandieh et al., TurboQuant, arXiv 2504.19874; the presets are those of vLLM's
`kv_cache_dtype="turboquant_..."`, which leave the first and last two layers of a model in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor
from transformers import PretrainedConfig

from .codec import Cast, Codec, Codes, MinMax, hadamard, pack, unpack
from .method import Method
from .store import CodecStore, Store, store_method

EDGE_LAYERS = 2
PRESETS = {"k8v4": (8, 4), "4bit_nc": (4, 4), "k3v4_nc": (3, 4), "3bit_nc": (3, 3)}
"""Bits of keys and of values; keys of 8 bits are e4m3 numbers."""
ITERATIONS = 2000


@cache
def normal_levels(bits: int) -> Tensor:
    """The 2**bits levels with the least squared error on a standard normal, ascending (Lloyd's
    iteration: each is the mean between the midpoints to its neighbours)."""
    levels = torch.linspace(-3, 3, 2**bits, dtype=torch.float64)
    ends = torch.tensor([float("inf")], dtype=torch.float64)
    for _ in range(ITERATIONS):
        edges = torch.cat([-ends, (levels[1:] + levels[:-1]) / 2, ends])
        density = torch.exp(-(edges**2) / 2) / (2 * torch.pi) ** 0.5
        below = torch.special.ndtr(edges)
        levels = (density[:-1] - density[1:]) / (below[1:] - below[:-1])
    return levels.float()


class RotatedKeys:
    """A vector's float16 norm, and its direction as levels of the rotated channels; read back, the
    levels are given unit norm again."""

    def __init__(self, bits: int, size: int) -> None:
        self.bits, self.rotation = bits, hadamard(size)
        self.levels = normal_levels(bits) / size**0.5
        self.edges = (self.levels[1:] + self.levels[:-1]) / 2

    def encode(self, x: Tensor) -> Codes:
        norm = x.norm(dim=-1, keepdim=True)
        rotated = (x / norm.clamp_min(1e-8)) @ self.rotation
        codes = torch.bucketize(rotated, self.edges)
        return {"q": pack(codes, self.bits), "norm": norm.half()}

    def decode(self, codes: Codes) -> Tensor:
        levels = self.levels[unpack(codes["q"], self.bits)]
        unit = levels / levels.norm(dim=-1, keepdim=True)
        return unit @ self.rotation * codes["norm"].float()


def codecs(preset: str, size: int) -> tuple[Codec, Codec]:
    key_bits, value_bits = PRESETS[preset]
    keys = Cast(torch.float8_e4m3fn) if key_bits == 8 else RotatedKeys(key_bits, size)
    return keys, MinMax(value_bits)


def _store(preset: str, edges: int, config: PretrainedConfig, layer_idx: int) -> Store:
    """The store of a layer, in 16 bits in the `edges` first and last ones."""
    if edges <= layer_idx < config.num_hidden_layers - edges:
        return CodecStore(*codecs(preset, config.head_dim))
    return CodecStore(Cast(torch.float16), Cast(torch.float16))


def methods() -> Iterator[Method]:
    for preset in PRESETS:
        for suffix, edges, conventions in (
            ("", 0, ("read", "raw", "w32")),
            (" edges at 16 bits", EDGE_LAYERS, ("read", "raw")),
        ):
            for convention in conventions:
                make = partial(_store, preset, edges)
                name = f"turboquant_{preset}{suffix}"
                yield store_method(name, "TurboQuant, vLLM", convention, make)
