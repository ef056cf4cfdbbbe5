"""Rows of a layer, wherever they lie in the arena."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs.row_layout import Kind, RowLayout
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows

LAYOUT = RowLayout.of_runs([(6, Kind.FLOAT16)])
FRAMES, TOKENS, OFFSET = 5, 3, 16
FRAME_BYTES = 64


def rows() -> PagedRows:
    arena = torch.arange(FRAMES * FRAME_BYTES, dtype=torch.int64).remainder(251).to(torch.uint8)
    return PagedRows(
        arena=arena,
        layout=LAYOUT,
        frame_bytes=FRAME_BYTES,
        frame_tokens=TOKENS,
        layer_offset=OFFSET,
    )


def test_rows_at_positions() -> None:
    made = rows()
    table = torch.tensor([[2, 4, -1], [3, 1, 0]], dtype=torch.int32)
    positions = torch.tensor([[0, 2, 3, 5], [8, 1, 4, 4]])
    found = made.at(table, positions)
    assert found.shape == (2, 4, LAYOUT.row_bytes)
    for b, one in enumerate(positions.tolist()):
        for i, position in enumerate(one):
            frame = int(table[b, position // TOKENS])
            first = frame * FRAME_BYTES + OFFSET + position % TOKENS * LAYOUT.row_bytes
            assert torch.equal(found[b, i], made.arena[first : first + LAYOUT.row_bytes])


def test_positions_without_rows_give_anything_of_the_right_shape() -> None:
    table = torch.tensor([[2, -1]], dtype=torch.int32)
    assert rows().at(table, torch.tensor([[-3, 4, 99]])).shape == (1, 3, LAYOUT.row_bytes)
    empty = torch.zeros(1, 0, dtype=torch.int32)
    assert rows().at(empty, torch.tensor([[0, 1]])).shape == (1, 2, LAYOUT.row_bytes)


def test_rows_beyond_a_frame_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 rows of 12 bytes from byte 32 do not fit a frame"):
        PagedRows(
            arena=torch.zeros(256, dtype=torch.uint8),
            layout=LAYOUT,
            frame_bytes=FRAME_BYTES,
            frame_tokens=TOKENS,
            layer_offset=32,
        )
