"""What a step finds in the pool: where kernels find every byte of a state."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.errors import KernelUnavailableError
from cacheshrink_hybrid.pool.layout import compile_layout
from cacheshrink_hybrid.pool.lifetime import LayerRows
from cacheshrink_hybrid.pool.memory import place_in_state
from cacheshrink_hybrid.pool.state_map import StateRows


@pytest.mark.parametrize("row_bytes", [48, 6, 4])
def test_place_in_state(row_bytes: int) -> None:
    """Every byte of a state tensor is found where the layout puts it."""
    states = [
        StateRows(layer_idx=0, name="conv0", num_rows=5, row_bytes=16),
        StateRows(layer_idx=0, name="recurrent0", num_rows=40, row_bytes=row_bytes),
    ]
    layout = compile_layout([LayerRows(layer_idx=1, row_bytes=32)], states, tokens_per_frame=8)
    frame_bytes = layout.frame_bytes
    if frame_bytes % row_bytes and row_bytes % 16:
        with pytest.raises(KernelUnavailableError, match="leave gaps"):
            place_in_state(layout.state, 1, frame_bytes)
        return
    place = place_in_state(layout.state, 1, frame_bytes)
    frame, offset = place.locate(torch.arange(40 * row_bytes), frame_bytes)
    due = [
        (piece.frame, piece.offset + byte)
        for piece in layout.state.slices[1]
        for byte in range(piece.num_rows * row_bytes)
    ]
    assert list(zip(frame.tolist(), offset.tolist(), strict=True)) == due
