"""Parts of rows hold the very codes and gains of whole ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import RowLayout
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.kernels.latents.append import latent_append
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.latents.row_parts import RowPart, append_part, cut_rows
from cacheshrink_hybrid.kernels.latents.row_reference import decode_rows
from cacheshrink_hybrid.kernels.numerics import INTERPRET

PARTS = 2
CODED = ((2, 16), (4, 8), (12, 6), (6, 5), (16, 4), (10, 3), (4, 2), (6, 1))
"""Shares that fill whole bytes, and shares that end within one."""
RUNS = {
    "coded": (CODED, RowFormat()),
    "padded": (CODED, RowFormat(alignment=16)),
    "without gains": (CODED, RowFormat(gains=False)),
    "floats": (((4, 8), (6, 16)), RowFormat(byte="e4m3", half="bfloat16")),
}
SLOTS = torch.tensor([7, -1, 12, 3, 8])


def _layouts(name: str) -> tuple[RowLayout, RowLayout]:
    """Of whole rows, and of a part."""
    runs, format = RUNS[name]
    return format.layout(runs), format.layout([(n // PARTS, bits) for n, bits in runs])


def _own(layout: RowLayout, number: int) -> list[int]:
    """Channels of a part."""
    found: list[int] = []
    for run in layout.runs:
        share = run.channels // PARTS
        first = run.first_channel + number * share
        found += range(first, first + share)
    return found


def _memory(layout: RowLayout) -> PagedRows:
    arena = torch.full((4 * 4 * 128,), 0xEE, dtype=torch.uint8)
    return PagedRows(
        arena=arena, layout=layout, frame_bytes=4 * 128, frame_tokens=4, layer_offset=16
    )


def _rows(memory: PagedRows) -> Tensor:
    """What was written."""
    slots, width = SLOTS[SLOTS >= 0], memory.layout.row_bytes
    first = slots // 4 * memory.frame_bytes + memory.layer_offset + slots % 4 * width
    return memory.arena[first[:, None] + torch.arange(width)]


def _latents(layout: RowLayout) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    latent = torch.randn(len(SLOTS), layout.num_channels, generator=generator)
    latent *= torch.tensor([1.0, 1.0, 9.0, 0.1, 2.0])[:, None]
    latent[4, layout.num_channels - 1] = torch.nan
    return latent


@pytest.mark.parametrize(
    "backend", ["torch", pytest.param("triton", marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", RUNS)
def test_a_part_reads_as_in_whole_rows(name: str, backend: Backend) -> None:
    if backend == "triton" and not INTERPRET.value:
        pytest.skip("needs TRITON_INTERPRET=1 in a process without a GPU")
    whole, own = _layouts(name)
    latent, costs = _latents(whole), torch.linspace(0.1, 1, whole.num_channels)
    memory = _memory(whole)
    latent_append(latent, memory, SLOTS, costs=costs, backend=backend)
    due = decode_rows(_rows(memory), whole)
    for number in range(PARTS):
        memory = _memory(own)
        part = RowPart(number, PARTS, whole)
        append_part(latent, part, memory, SLOTS, costs=costs, backend=backend)
        found = decode_rows(_rows(memory), own)
        torch.testing.assert_close(
            found, due[:, _own(whole, number)], rtol=0, atol=0, equal_nan=True
        )
        touched = (memory.arena != 0xEE).sum()
        assert touched <= (SLOTS >= 0).sum() * own.row_bytes


def test_nothing_is_written_of_no_tokens() -> None:
    whole, own = _layouts("coded")
    memory = _memory(own)
    empty = torch.empty(0, whole.num_channels)
    part = RowPart(0, PARTS, whole)
    append_part(empty, part, memory, torch.empty(0, dtype=torch.int64), backend="torch")
    assert (memory.arena == 0xEE).all()


def test_bytes_are_a_share_and_a_gain() -> None:
    whole, own = RowFormat().layout(((16, 8), (32, 4))), RowFormat().layout(((8, 8), (16, 4)))
    assert PARTS * (own.row_bytes - 1) == whole.row_bytes - 1


@pytest.mark.parametrize("runs", [((16, 8), (32, 4)), ((8, 8), (16, 3)), ((8, 8),)])
def test_other_rows_are_no_part(runs: tuple[tuple[int, int], ...]) -> None:
    whole = RowFormat().layout(((16, 8), (32, 4)))
    stored = torch.zeros(1, whole.row_bytes, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="not one of 2 equal parts"):
        cut_rows(stored, RowPart(0, PARTS, whole), RowFormat().layout(runs))
