"""Coding new latents and writing them into the pool."""

from __future__ import annotations

import torch
from torch import Tensor

from ....errors import ConfigError
from ...backend import Backend, implementation
from ..paged_rows import PagedRows

__all__ = ["latent_append"]


def latent_append(
    latent: Tensor,
    rows: PagedRows,
    slot_mapping: Tensor,
    *,
    center: Tensor | None = None,
    costs: Tensor | None = None,
    backend: Backend = "auto",
) -> None:
    """Code latents as rows, and write each row to its slot of `rows.arena`, in place.

    Coded channels of a token are divided by its gain, which is chosen by the error of its row
    (`codecs.gains`), and get the code of the level that they lie by. Floats are rounded to nearest
    even and clipped to the largest finite number. A token with a channel that is not finite is
    written as lost. Rows without gains have no code for that (see `codecs.row_layout`). Kernel and
    reference may choose differently between gains whose errors differ by rounding alone.

    Args:
        latent: (N, R), floating point.
        rows: where the layer's rows lie.
        slot_mapping: slot of each token, (N,), int64: frame * frame_tokens + place in the frame;
            -1 for tokens that are not to be written. No slot may occur twice.
        center: subtracted from every latent first, (R,); None for nothing.
        costs: of a squared error in each channel, (R,); None for 1.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.
    """
    channels = rows.layout.num_channels
    faults = []
    if latent.ndim != 2 or latent.shape[1] != channels or not latent.is_floating_point():
        faults.append(
            f"latent is {latent.dtype} {tuple(latent.shape)}; due is floating point (N, {channels})"
        )
    if slot_mapping.shape != latent.shape[:1] or slot_mapping.dtype != torch.int64:
        faults.append(
            f"slot_mapping is {slot_mapping.dtype} {tuple(slot_mapping.shape)}; due is int64 "
            f"({latent.shape[0]},)"
        )
    for name, vector in (("center", center), ("costs", costs)):
        if vector is not None and vector.shape != (channels,):
            faults.append(f"{name} has shape {tuple(vector.shape)}; due is ({channels},)")
    if faults:
        raise ConfigError("; ".join(faults))
    chosen = implementation(backend, latent, rows.arena, slot_mapping, center, costs)
    if chosen == "triton":
        from .kernel import latent_append_triton

        latent_append_triton(latent, rows, slot_mapping, center=center, costs=costs)
    elif chosen == "cpu":
        from .cpu import latent_append_cpu

        latent_append_cpu(latent, rows, slot_mapping, center=center, costs=costs)
    else:
        from .reference import latent_append_reference

        latent_append_reference(latent, rows, slot_mapping, center=center, costs=costs)
