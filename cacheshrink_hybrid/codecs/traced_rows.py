"""Coding rows within a compiled graph.

On a CPU the codec looks at values to leave out work for rare ones, which a graph cannot, and its
many small steps would be most of what there is to compile. There it is one operation of the graph;
compiled and eager models give the same rows. On an accelerator the steps are traced, so that the
compiler can fuse them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from .row_format import RowFormat
from .rows import RowCodec


def encode_rows(codec: RowCodec, latent: Tensor, costs: Tensor | None) -> Tensor:
    """`codec.encode`, in graphs too; codes have no gradient."""
    latent, costs = latent.detach(), None if costs is None else costs.detach()
    if torch.compiler.is_compiling() and latent.device.type == "cpu":
        return torch.ops.cacheshrink_hybrid.encode_rows(latent, costs, *codec.description)
    return codec.encode(latent, costs)


def decode_rows(codec: RowCodec, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """`codec.decode`, in graphs too."""
    if torch.compiler.is_compiling() and rows.device.type == "cpu":
        return torch.ops.cacheshrink_hybrid.decode_rows(rows, dtype, *codec.description)
    return codec.decode(rows, dtype)


def _format(gains: bool, half: str, byte: str, alignment: int) -> RowFormat:
    return RowFormat(gains=gains, half=half, byte=byte, alignment=alignment)


@cache
def _described(runs: tuple[tuple[int, int], ...], *fields: Any) -> RowCodec:
    return RowCodec(runs, _format(*fields))


def _codec(channels: list[int], bits: list[int], *fields: Any) -> RowCodec:
    """The codec of `RowCodec.description`."""
    return _described(tuple(zip(channels, bits, strict=True)), *fields)


DESCRIPTION = "int[] channels, int[] bits, bool gains, str half, str byte, int alignment"
LIBRARY = torch.library.Library("cacheshrink_hybrid", "DEF")
LIBRARY.define(f"encode_rows(Tensor latent, Tensor? costs, {DESCRIPTION}) -> Tensor")
LIBRARY.define(f"decode_rows(Tensor rows, ScalarType dtype, {DESCRIPTION}) -> Tensor")


@torch.library.impl(LIBRARY, "encode_rows", "CPU")
def _encode(latent: Tensor, costs: Tensor | None, *description: Any) -> Tensor:
    return _codec(*description).encode(latent, costs)


@torch.library.impl(LIBRARY, "decode_rows", "CPU")
def _decode(rows: Tensor, dtype: torch.dtype, *description: Any) -> Tensor:
    return _codec(*description).decode(rows, dtype)


@torch.library.register_fake("cacheshrink_hybrid::encode_rows", lib=LIBRARY)
def _shape_of_rows(
    latent: Tensor, costs: Tensor | None, channels: list[int], bits: list[int], *fields: Any
) -> Tensor:
    row_bytes = _format(*fields).row_bytes(list(zip(channels, bits, strict=True)))
    return latent.new_empty((*latent.shape[:-1], row_bytes), dtype=torch.uint8)


@torch.library.register_fake("cacheshrink_hybrid::decode_rows", lib=LIBRARY)
def _shape_of_latents(
    rows: Tensor, dtype: torch.dtype, channels: list[int], *description: Any
) -> Tensor:
    return rows.new_empty((*rows.shape[:-1], sum(channels)), dtype=dtype)
