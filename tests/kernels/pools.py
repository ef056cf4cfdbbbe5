"""Arenas with known contents for tests of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from cacheshrink_hybrid.codecs.row_layout import RowLayout
from cacheshrink_hybrid.kernels.latents.append import latent_append
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.states.pages import StatePages


def empty_rows(
    layout: RowLayout,
    *,
    device: torch.device,
    num_frames: int,
    frame_tokens: int = 8,
    layer_offset: int = 32,
    poison: int = 0xFF,
) -> PagedRows:
    """Rows of a layer in an arena full of `poison`, which reads as NaN in every float format."""
    frame_bytes = -(-(layer_offset + frame_tokens * layout.row_bytes + 16) // 256) * 256
    arena = torch.full((num_frames * frame_bytes,), poison, dtype=torch.uint8, device=device)
    return PagedRows(
        arena=arena,
        layout=layout,
        frame_bytes=frame_bytes,
        frame_tokens=frame_tokens,
        layer_offset=layer_offset,
    )


def frame_tables(
    lens: list[int], frame_tokens: int, *, num_frames: int, spare: int = 1, seed: int = 1
) -> Tensor:
    """Random distinct frames for sequences of these lengths, (B, max_frames) int32; frame 0 is
    nobody's."""
    need = [-(-n // frame_tokens) for n in lens]
    generator = torch.Generator().manual_seed(seed)
    order = (torch.randperm(num_frames - 1, generator=generator) + 1).int()
    table = torch.full((len(lens), max(need) + spare), -1, dtype=torch.int32)
    first = 0
    for i, count in enumerate(need):
        table[i, :count] = order[first : first + count]
        first += count
    assert first < num_frames
    return table


def slots_of(table: Tensor, lens: list[int], frame_tokens: int) -> Tensor:
    """Slots of all tokens, sequence by sequence, int64."""
    slots = []
    for row, count in zip(table.cpu(), lens, strict=True):
        token = torch.arange(count)
        slots.append(row[token // frame_tokens].long() * frame_tokens + token % frame_tokens)
    return torch.cat(slots)


def row_addresses(rows: PagedRows, slots: Tensor) -> Tensor:
    """Where in the arena the bytes of rows lie, (N, row_bytes), of their slots (N,)."""
    frame, place = slots // rows.frame_tokens, slots % rows.frame_tokens
    first = frame * rows.frame_bytes + rows.layer_offset + place * rows.layout.row_bytes
    return first[:, None] + torch.arange(rows.layout.row_bytes, device=slots.device)


def filled_rows(
    layout: RowLayout,
    lens: list[int],
    *,
    device: torch.device,
    frame_tokens: int = 8,
    outliers: bool = True,
    seed: int = 1,
    poison: int = 0xFF,
) -> tuple[PagedRows, Tensor, Tensor]:
    """Rows of random latents, written by the reference; everything else is poison.

    Args:
        seed: of the order of the frames.

    Returns:
        rows, frame table, context lengths.
    """
    num_frames = sum(-(-n // frame_tokens) for n in lens) + 4
    rows = empty_rows(
        layout, device=device, num_frames=num_frames, frame_tokens=frame_tokens, poison=poison
    )
    table = frame_tables(lens, frame_tokens, num_frames=num_frames, seed=seed).to(device)
    latent = random_latents(sum(lens), layout.num_channels, outliers=outliers).to(device)
    slots = slots_of(table, lens, frame_tokens).to(device)
    latent_append(latent, rows, slots, backend="torch")
    return rows, table, torch.tensor(lens, dtype=torch.int32, device=device)


def random_latents(count: int, channels: int, *, outliers: bool = True) -> Tensor:
    """Channels of unit variance; of five tokens one is far out, by 3 to 60, and one small, down to
    less than the smallest gain."""
    generator = torch.Generator().manual_seed(2)
    latent = torch.randn(count, channels, generator=generator)
    if outliers and count:
        far = latent[::5]
        far *= torch.linspace(3, 60, far.shape[0])[:, None]
        small = latent[1::5]
        small *= torch.logspace(-0.3, -3, small.shape[0])[:, None]
    return latent


def bytes_of_states(pages: StatePages, table: Tensor) -> Tensor:
    """Which bytes of the arena the states in `table` take, bool."""
    byte = torch.arange(pages.format.num_bytes, device=table.device)
    frame, offset = pages.place.locate(byte, pages.frame_bytes)
    taken = torch.zeros_like(pages.arena, dtype=torch.bool)
    held = table[table[:, 0] >= 0].long()
    taken[(held[:, frame] * pages.frame_bytes + offset).flatten()] = True
    return taken
