"""NVFP4 as vLLM's `kv_cache_dtype="nvfp4"` has it: numbers of 4 bits (E2M1) in groups of 16 with an
e4m3 scale."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PretrainedConfig

from .codec import Codes, pack, unpack
from .method import Method
from .store import CodecStore, Store, store_method

GROUP = 16
LARGEST = 6.0
_POSITIVE = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, LARGEST])
NUMBERS = torch.cat([-_POSITIVE[1:].flip(0), _POSITIVE])
"""Those of E2M1, ascending; its two zeros are one."""
EDGES = (NUMBERS[1:] + NUMBERS[:-1]) / 2


class NVFP4:
    """The format of one vector of D channels: 9 D / 16 bytes."""

    def encode(self, x: Tensor) -> Codes:
        groups = x.unflatten(-1, (-1, GROUP))
        scale = (groups.abs().amax(-1, keepdim=True) / LARGEST).clamp(max=448)
        stored = scale.to(torch.float8_e4m3fn)
        used = stored.float()
        scaled = torch.where(used > 0, groups / used.clamp_min(1e-30), torch.zeros(()))
        codes = torch.bucketize(scaled, EDGES)
        return {"q": pack(codes.flatten(-2), 4), "scale": stored.squeeze(-1)}

    def decode(self, codes: Codes) -> Tensor:
        numbers = NUMBERS[unpack(codes["q"], 4)].unflatten(-1, (-1, GROUP))
        return (numbers * codes["scale"].float()[..., None]).flatten(-2)


def _store(config: PretrainedConfig, layer_idx: int) -> Store:
    return CodecStore(NVFP4(), NVFP4())


def methods() -> Iterator[Method]:
    for convention in ("read", "raw", "w32"):
        yield store_method("nvfp4", "nvfp4, vLLM", convention, _store)
