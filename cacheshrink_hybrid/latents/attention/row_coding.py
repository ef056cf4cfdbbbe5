"""Coding the latents of many new tokens as rows, before a cache stores them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...codecs.rows import RowCodec
from ...codecs.traced_rows import encode_rows
from ...kernels.backend import Implementation
from ...kernels.latents.append import latent_append
from ...kernels.latents.paged_rows import PagedRows


def coded_rows(
    codec: RowCodec, latent: Tensor, costs: Tensor | None, by: Implementation = "torch"
) -> Tensor:
    """`codec.encode`: rows (..., row_bytes) of latents (..., R), without gradients.

    Args:
        by: `cpu` for the functions that code the rows of single tokens there, which take a fraction
            of the time; else torch, as where gradients are taken and tensors may have no memory of
            their own (`torch.func`). They may choose differently between gains whose errors differ
            by rounding alone. Rows of floats alone are torch's, which is as fast.
    """
    floats_alone = not any(run.kind.coded for run in codec.runs)
    traced = torch.compiler.is_compiling() or torch.is_grad_enabled()
    if by != "cpu" or floats_alone or traced:
        return encode_rows(codec, latent, costs)
    flat = latent.detach().reshape(-1, codec.num_channels)
    count = len(flat)
    arena = torch.empty(count * codec.row_bytes, dtype=torch.uint8)
    if count:
        rows = PagedRows(
            arena=arena,
            layout=codec.layout,
            frame_bytes=arena.numel(),
            frame_tokens=count,
        )
        latent_append(flat, rows, torch.arange(count), costs=costs, backend="cpu")
    return arena.view(*latent.shape[:-1], codec.row_bytes)
