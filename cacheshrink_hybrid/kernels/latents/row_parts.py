"""Rows of some heads only: a part of the channels of whole rows, with the gain of the whole.

Whole rows are coded first, so that a part has the very codes that it has there, and which part a
process holds changes no number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...codecs.row_layout import RowLayout
from ...errors import ConfigError
from ..backend import Backend
from .append import latent_append
from .paged_rows import PagedRows
from .row_reference import packed, unpacked


@dataclass(frozen=True, slots=True)
class RowPart:
    """One of `count` equal parts of the heads, number `number`, and the layout of whole rows, each
    run of which holds the channels of part 0, then of part 1, and so on."""

    number: int
    count: int
    whole: RowLayout


def append_part(
    latent: Tensor,
    part: RowPart,
    rows: PagedRows,
    slot_mapping: Tensor,
    *,
    costs: Tensor | None = None,
    backend: Backend = "auto",
) -> None:
    """Code latents (N, R) as whole rows, and write what a part holds of them, in place.

    Args:
        rows: of the part.
        slot_mapping, costs, backend: see `latent_append`; costs of all R channels.

    Raises:
        ConfigError: rows that do not hold such a part, shapes or types that do not fit.
    """
    count, width = len(latent), part.whole.row_bytes
    if not count:
        return
    room = torch.empty(count * width, dtype=torch.uint8, device=rows.arena.device)
    scratch = PagedRows(
        arena=room, layout=part.whole, frame_bytes=len(room), frame_tokens=count, layer_offset=0
    )
    places = torch.arange(count, device=latent.device)
    latent_append(latent, scratch, places, costs=costs, backend=backend)
    stored = cut_rows(room.view(count, width), part, rows.layout)
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    first = slots // rows.frame_tokens * rows.frame_bytes + rows.layer_offset
    first = first + slots % rows.frame_tokens * rows.layout.row_bytes
    at = first[:, None] + torch.arange(rows.layout.row_bytes, device=slots.device)
    rows.arena[at] = stored[kept]


def cut_rows(stored: Tensor, part: RowPart, own: RowLayout) -> Tensor:
    """What a part holds, (N, bytes of `own`), of whole rows (N, bytes), uint8.

    Raises:
        ConfigError: a layout that is not that of the part.
    """
    due = [(run.kind, run.channels) for run in part.whole.runs]
    found = [(run.kind, run.channels * part.count) for run in own.runs]
    if due != found or (own.gain_byte is None) != (part.whole.gain_byte is None):
        raise ConfigError(
            f"rows of {own.num_channels} channels are not one of {part.count} equal parts of rows "
            f"of {part.whole.num_channels}; give the layout of the part's plan"
        )
    cut = stored.new_zeros(len(stored), own.row_bytes)
    for run, own_run in zip(part.whole.runs, own.runs, strict=True):
        first, count = part.number * own_run.channels, own_run.channels
        for plane, own_plane in zip(run.planes, own_run.planes, strict=True):
            numbers = stored[:, plane.at_byte]
            if first * plane.bits % 8 or count * plane.bits % 8:
                codes = unpacked(numbers, plane.bits)[:, first : first + count]
                cut[:, own_plane.at_byte] = packed(codes, plane.bits)
            else:
                start = first * plane.bits // 8
                cut[:, own_plane.at_byte] = numbers[:, start : start + own_plane.num_bytes]
    if own.gain_byte is not None:
        cut[:, own.gain_byte] = stored[:, part.whole.gain_byte]
    return cut
