"""Rows to latents in plain torch: the definition that kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...codecs.gains import LARGEST_CODE, STEPS, UNIT_CODE
from ...codecs.levels import levels_of
from ...codecs.row_layout import RowLayout, Run
from .paged_rows import PagedRows


def decode_rows(stored: Tensor, layout: RowLayout) -> Tensor:
    """Latents (..., R), float32, of rows (..., row_bytes), uint8."""
    gain = None
    if layout.gain_byte is not None:
        gain = gain_of(stored[..., layout.gain_byte])[..., None]
    parts = []
    for run in layout.runs:
        if not run.kind.coded:
            aligned = stored[..., run.at_byte].clone(memory_format=torch.contiguous_format)
            parts.append(aligned.view(run.kind.dtype).float())
            continue
        levels = levels_of(run.bits).to(stored.device, torch.float32)
        part = levels[codes_of_run(stored, run)]
        parts.append(part if gain is None else part * gain)
    return torch.cat(parts, dim=-1)


def gain_of(code: Tensor) -> Tensor:
    """Gain of each code, float32; NaN for lost tokens."""
    gain = torch.exp2((code.double() - UNIT_CODE) / STEPS).float()
    return torch.where(code > LARGEST_CODE, torch.nan, gain)


def codes_of_run(stored: Tensor, run: Run) -> Tensor:
    """Codes (..., channels), int64, of a run of rows (..., row_bytes)."""
    codes, shift = torch.zeros((), dtype=torch.int64, device=stored.device), 0
    for plane in run.planes:
        numbers = unpacked(stored[..., plane.at_byte], plane.bits)[..., : run.channels]
        codes = codes + (numbers << shift)
        shift += plane.bits
    return codes


def planes_of_run(codes: Tensor, run: Run) -> Tensor:
    """The inverse of `codes_of_run`: bytes (..., num_bytes), uint8."""
    planes, shift = [], 0
    for plane in run.planes:
        planes.append(packed((codes >> shift) % 2**plane.bits, plane.bits))
        shift += plane.bits
    return torch.cat(planes, dim=-1)


def unpacked(stored: Tensor, bits: int) -> Tensor:
    """Numbers (..., n * 8 / bits) of bytes (..., n), neighbours from the lowest bits up; int64."""
    shifts = torch.arange(0, 8, bits, device=stored.device)
    return ((stored.long()[..., None] >> shifts) % 2**bits).flatten(-2)


def packed(numbers: Tensor, bits: int) -> Tensor:
    """The inverse of `unpacked`, uint8; zeros fill up the last byte."""
    per_byte = 8 // bits
    numbers = nn.functional.pad(numbers, (0, -numbers.shape[-1] % per_byte))
    shifts = torch.arange(0, 8, bits, device=numbers.device)
    return (numbers.unflatten(-1, (-1, per_byte)) << shifts).sum(-1).to(torch.uint8)


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
    latent = decode_rows(stored, rows.layout)
    return torch.where(has_frame[..., None], latent, 0.0), has_frame
