"""`conv_update_project` in plain torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .pages import ConvPages


def conv_update_project_reference(
    column: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pages: ConvPages,
    read_table: Tensor,
    write_table: Tensor,
    order: tuple[str, ...],
    groups: int,
    group_size: int,
    write_basis: Tensor | None,
    read_basis: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `conv_update_project`; float32 arithmetic."""
    B, C = column.shape
    # What a window holds is what was stored, also for the newest column.
    newest = column.to(pages.dtype)
    at = partial(pages.place.addresses, num_bytes=pages.num_bytes, frame_bytes=pages.frame_bytes)
    stored = pages.arena[at(read_table)].view(pages.dtype)
    held = (read_table[:, 0] >= 0)[:, None, None]
    before = torch.where(held, stored.view(B, C, pages.columns), 0.0)
    window = torch.cat([before, newest[:, :, None]], dim=-1)
    kept = write_table[:, 0] >= 0
    columns = window[kept][..., 1:].contiguous()
    pages.arena[at(write_table[kept])] = columns.view(torch.uint8).flatten(1)
    z = (window.float() * weight.float()).sum(-1)
    if bias is not None:
        z = z + bias.float()
    z = torch.nn.functional.silu(z)
    shared = groups * group_size
    sizes = {"values": C - (len(order) - 1) * shared, "write": shared, "read": shared}
    parts = dict(zip(order, z.split([sizes[name] for name in order], dim=-1), strict=True))
    results: list[Tensor | None] = []
    for name, basis in (("write", write_basis), ("read", read_basis)):
        if name not in parts:
            results.append(None)
            continue
        part = parts[name].unflatten(-1, (groups, group_size))
        if normalize:
            part = part * torch.rsqrt(part.square().sum(-1, keepdim=True) + 1e-6)
        if basis is not None:
            part = torch.einsum("bgn,gnr->bgr", part, basis.float())
        results.append(part)
    return parts["values"].to(column.dtype), results[0], results[1]
