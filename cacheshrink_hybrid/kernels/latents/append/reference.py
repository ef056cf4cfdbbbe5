"""`latent_append` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ....codecs.levels import (
    HEAD_ESCAPED_LEVELS,
    HEAD_GAINS,
    HEAD_LEVELS,
    HEAD_NAN,
    UNIFORM_CLIP,
)
from ....codecs.row_layout import Kind
from ..paged_rows import PagedRows
from ..row_reference import packed_codes

# Devices differ in the NaN that they make; these are the quiet ones of the standard.
NAN_BYTES = {
    Kind.FLOAT32: (0x00, 0x00, 0xC0, 0x7F),
    Kind.FLOAT16: (0x00, 0x7E),
    Kind.BFLOAT16: (0xC0, 0x7F),
    Kind.E4M3: (0x7F,),
    Kind.E5M2: (0x7F,),
}


def latent_append_reference(
    latent: Tensor,
    rows: PagedRows,
    slot_mapping: Tensor,
    *,
    center: Tensor | None,
    reach: Tensor | None,
) -> None:
    """See `latent_append`."""
    kept = slot_mapping >= 0
    x = latent[kept].float()
    if center is not None:
        x = x - center.float()
    stored = encode_rows(x, rows, reach)
    slots = slot_mapping[kept]
    first = slots // rows.frame_tokens * rows.frame_bytes + rows.layer_offset
    first = first + slots % rows.frame_tokens * rows.layout.row_bytes
    at = first[:, None] + torch.arange(rows.layout.row_bytes, device=latent.device)
    rows.arena[at] = stored


def encode_rows(x: Tensor, rows: PagedRows, reach: Tensor | None) -> Tensor:
    """Rows (N, row_bytes), uint8, of latents (N, R), float32."""
    layout = rows.layout
    finite = torch.isfinite(x).all(dim=-1)
    x = torch.where(finite[:, None], x, 0.0)
    stored = x.new_zeros((x.shape[0], layout.row_bytes), dtype=torch.uint8)
    exponent = _gain_exponent(x, rows, reach)
    scaled = x * torch.exp2(-exponent)[:, None]
    for run in layout.runs:
        if not run.kind.coded:
            dtype = run.kind.dtype
            limit = torch.finfo(dtype).max
            part = x[:, run.at_channel].clamp(-limit, limit).to(dtype).view(torch.uint8)
            lost = torch.tensor(NAN_BYTES[run.kind], dtype=torch.uint8, device=x.device)
            lost = lost.repeat(run.channels)
            stored[:, run.at_byte] = torch.where(finite[:, None], part, lost)
        elif run.kind is Kind.UNIFORM8:
            position = (scaled[:, run.at_channel] / (2 * UNIFORM_CLIP) + 0.5) * 256
            stored[:, run.at_byte] = position.floor().clamp(0, 255).to(torch.uint8)
        else:
            levels = rows.levels_of(run.bits)
            edges = 0.5 * (levels[1:] + levels[:-1])
            codes = torch.bucketize(scaled[:, run.at_channel].contiguous(), edges)
            stored[:, run.at_byte] = packed_codes(codes, run.bits)
    if layout.head_byte is not None:
        value = torch.zeros_like(exponent)
        if layout.head_channel is not None:
            value = scaled[:, layout.head_channel]
        position = (value / (2 * UNIFORM_CLIP) + 0.5).clamp(0.0, 1.0)
        fine = (position * HEAD_LEVELS).floor().clamp_max(HEAD_LEVELS - 1)
        coarse = (position * HEAD_ESCAPED_LEVELS).floor().clamp_max(HEAD_ESCAPED_LEVELS - 1)
        escaped = HEAD_LEVELS + (exponent - 1) * HEAD_ESCAPED_LEVELS + coarse
        head = torch.where(exponent > 0, escaped, fine)
        head = torch.where(finite, head, HEAD_NAN)
        stored[:, layout.head_byte] = head.to(torch.uint8)
    return stored


def _gain_exponent(x: Tensor, rows: PagedRows, reach: Tensor | None) -> Tensor:
    """log2 of each token's gain, (N,)."""
    if rows.layout.head_byte is None:
        return x.new_zeros(x.shape[0])
    coded = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    for run in rows.layout.runs:
        coded[run.at_channel] = run.kind.coded
    magnitude = x[:, coded].abs()
    limit = UNIFORM_CLIP if reach is None else reach.float()[coded]
    largest = (magnitude * (magnitude > limit)).amax(dim=-1) / UNIFORM_CLIP
    powers = torch.exp2(torch.arange(HEAD_GAINS, device=x.device).float())
    return (largest[:, None] > powers).sum(-1).float()
