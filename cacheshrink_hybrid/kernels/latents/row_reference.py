"""Rows to latents in plain torch: the definition that kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from ...codecs.levels import (
    HEAD_ESCAPED_LEVELS,
    HEAD_LEVELS,
    HEAD_NAN,
    UNIFORM_CLIP,
    UNIFORM_STEP,
)
from ...codecs.row_layout import Kind
from .paged_rows import PagedRows


def decode_rows(stored: Tensor, rows: PagedRows) -> Tensor:
    """Latents (..., R), float32, of rows (..., row_bytes), uint8."""
    layout = rows.layout
    parts = []
    gain = head = None
    if layout.head_byte is not None:
        head = stored[..., layout.head_byte]
        gain = gain_of(head)[..., None]
    for run in layout.runs:
        packed = stored[..., run.at_byte].contiguous()
        if not run.kind.coded:
            parts.append(packed.view(run.kind.dtype).float())
            continue
        if run.kind is Kind.UNIFORM8:
            part = (packed.float() + 0.5) * UNIFORM_STEP - UNIFORM_CLIP
        else:
            part = rows.levels_of(run.bits)[unpacked(packed, run.bits)]
        if run.first_channel == layout.head_channel:
            assert head is not None
            part[..., 0] = head_level(head)
        parts.append(part if gain is None else part * gain)
    latent = torch.cat(parts, dim=-1)
    if gain is not None:
        latent = torch.where(gain.isnan(), torch.nan, latent)
    return latent


def gain_of(head: Tensor) -> Tensor:
    """Gain of each head byte, float32; NaN for lost tokens."""
    exponent = head.long() - HEAD_LEVELS + HEAD_ESCAPED_LEVELS
    exponent = exponent.clamp_min(0) // HEAD_ESCAPED_LEVELS
    return torch.where(head == HEAD_NAN, torch.nan, torch.exp2(exponent.float()))


def head_level(head: Tensor) -> Tensor:
    """Value of the head channel that each head byte stands for, divided by the gain, float32."""
    code = head.float()
    fine = (code + 0.5) / HEAD_LEVELS
    coarse = ((code - HEAD_LEVELS) % HEAD_ESCAPED_LEVELS + 0.5) / HEAD_ESCAPED_LEVELS
    return 2 * UNIFORM_CLIP * torch.where(head < HEAD_LEVELS, fine, coarse) - UNIFORM_CLIP


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """Codes (..., n * 8 / bits) of bytes (..., n), neighbours from the lowest bits up; int64."""
    shifts = torch.arange(0, 8, bits, device=packed.device)
    return ((packed.long()[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


def packed_codes(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `unpacked`, uint8."""
    shifts = torch.arange(0, 8, bits, device=codes.device)
    return (codes.unflatten(-1, (-1, 8 // bits)) << shifts).sum(-1).to(torch.uint8)


def gather_latents(rows: PagedRows, frame_table: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Latents of the first tokens of each sequence, and which of them have a frame.

    Returns:
        (B, num_tokens, R) float32, and (B, num_tokens) bool; zeros where there is no frame.
    """
    device = rows.arena.device
    tokens = torch.arange(num_tokens, device=device)
    frames = frame_table.long()[:, tokens // rows.frame_tokens]
    has_frame = frames >= 0
    row_bytes = rows.layout.row_bytes
    first = frames.clamp_min(0) * rows.frame_bytes + rows.layer_offset
    first = first + tokens % rows.frame_tokens * row_bytes
    stored = rows.arena[first[..., None] + torch.arange(row_bytes, device=device)]
    latent = decode_rows(stored, rows)
    return torch.where(has_frame[..., None], latent, 0.0), has_frame
