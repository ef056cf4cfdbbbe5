"""Formats of vectors: what a codec is, how codes are packed, and the plainest codecs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

Codes = dict[str, Tensor]
"""What is stored of some vectors, by name; every byte of it is counted."""
LEAST_SCALE = 1e-8


class Codec(Protocol):
    """A format of vectors (..., D), each coded for itself."""

    def encode(self, x: Tensor) -> Codes: ...

    def decode(self, codes: Codes) -> Tensor:
        """Vectors (..., D), float32."""
        ...


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers (..., D) below 2**bits as bytes (..., D * bits / 8); D is a multiple of 8."""
    octets = codes.to(torch.int64).unflatten(-1, (-1, 8))
    words = (octets << (bits * torch.arange(8))).sum(-1, keepdim=True)  # of 8 * bits bits
    return ((words >> (8 * torch.arange(bits))) & 255).to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """What `pack` was given, int64."""
    pieces = packed.to(torch.int64).unflatten(-1, (-1, bits))
    words = (pieces << (8 * torch.arange(bits))).sum(-1, keepdim=True)
    return ((words >> (bits * torch.arange(8))) & (2**bits - 1)).flatten(-2)


def hadamard(size: int) -> Tensor:
    """The orthogonal Hadamard matrix (size, size) of Sylvester, size a power of two; symmetric."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


class Cast:
    """Every number in another type, within its range."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def encode(self, x: Tensor) -> Codes:
        largest = torch.finfo(self.dtype).max
        return {"numbers": x.clamp(-largest, largest).to(self.dtype)}

    def decode(self, codes: Codes) -> Tensor:
        return codes["numbers"].float()


class MinMax:
    """Even steps from the least to the largest number, with a float16 step and minimum for every
    vector, or for every `group` numbers of it."""

    def __init__(self, bits: int, group: int | None = None) -> None:
        self.bits, self.group = bits, group

    def encode(self, x: Tensor) -> Codes:
        groups = x.unflatten(-1, (-1, self.group or x.shape[-1]))
        least = groups.amin(-1, keepdim=True)
        top = 2**self.bits - 1
        step = ((groups.amax(-1, keepdim=True) - least) / top).clamp_min(LEAST_SCALE)
        codes = ((groups - least) / step).round().clamp(0, top)
        return {"q": pack(codes.flatten(-2), self.bits), "step": step.half(), "least": least.half()}

    def decode(self, codes: Codes) -> Tensor:
        step, least = codes["step"].float(), codes["least"].float()
        numbers = unpack(codes["q"], self.bits).unflatten(-1, (step.shape[-2], -1))
        return (numbers * step + least).flatten(-2)
