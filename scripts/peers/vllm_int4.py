"""vLLM's `int4_per_token_head`: signs and a Hadamard matrix mix each vector, which is then coded in
16 even steps from its least to its largest channel. The zero point lies in the last bits of the
float32 step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PretrainedConfig

from .codec import Codes, hadamard, pack, unpack
from .method import Method
from .store import CodecStore, Store, store_method

SIGN_SEED = 0x9E3779B9
TOP = 15
LEAST_STEP = 1e-6


class Int4PerTokenHead:
    """The format of one vector of `size` channels: `size` / 2 + 4 bytes."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(SIGN_SEED)
        signs = 2 * torch.bernoulli(torch.full((size,), 0.5), generator=generator) - 1
        self.mix = signs[:, None] * hadamard(size)

    def encode(self, x: Tensor) -> Codes:
        mixed = x @ self.mix * x.shape[-1] ** 0.5
        least = mixed.amin(-1, keepdim=True)
        step = ((mixed.amax(-1, keepdim=True) - least) / TOP).clamp_min(LEAST_STEP)
        zero = rounded(-least / step).clamp(0, TOP)
        codes = rounded(mixed / step + zero).clamp(0, TOP)
        # As integers, since a 16-bit model cannot have this float in two bytes.
        tagged = (step.view(torch.int32) & ~TOP) | zero.to(torch.int32)
        return {"q": pack(codes, 4), "step": tagged}

    def decode(self, codes: Codes) -> Tensor:
        zero = codes["step"] & TOP
        step = (codes["step"] & ~TOP).view(torch.float32)
        mixed = (unpack(codes["q"], 4) - zero) * step
        return mixed @ self.mix.T / mixed.shape[-1] ** 0.5


def rounded(x: Tensor) -> Tensor:
    """To the nearest integer, halves away from zero."""
    return torch.sign(x) * torch.floor(x.abs() + 0.5)


def _store(config: PretrainedConfig, layer_idx: int) -> Store:
    codec = Int4PerTokenHead(config.head_dim)
    return CodecStore(codec, codec)


def methods() -> Iterator[Method]:
    for convention in ("read", "raw", "w32"):
        yield store_method("int4_per_token_head", "int4, vLLM", convention, _store)
