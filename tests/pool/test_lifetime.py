"""How many frames rows of a kind take while a sequence grows by steps of any size."""

from __future__ import annotations

import random

import pytest
import torch

from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.layout import compile_layout
from cacheshrink_hybrid.pool.lifetime import RECENT, RECENT_HISTORY, WHOLE_STEP, LayerRows
from cacheshrink_hybrid.pool.store import SequenceStore

STEPS = (1, 2, 9, 33, WHOLE_STEP, WHOLE_STEP + 1, 2 * RECENT_HISTORY)


@pytest.mark.parametrize("history", [0, 5, 1 << 40])
@pytest.mark.parametrize("window", [1, 28, 100])
def test_recent_rows_stay_within_their_most(window: int, history: int) -> None:
    rows = LayerRows(layer_idx=0, row_bytes=80, window=window, kind=RECENT)
    layout = compile_layout([LayerRows(layer_idx=0, row_bytes=64), rows], tokens_per_frame=8)
    recent = layout.classes[1]
    order = random.Random(window)
    for _ in range(20):
        pool = FramePool(400, layout.frame_bytes, device=torch.device("cpu"))
        store = SequenceStore(layout, pool, history=history)
        store.create("a")
        total = 0
        while total < 700:
            count = order.choice(STEPS)
            store.reserve(["a"], count)
            store.commit(["a"])
            total += count
            held = int((store.frame_table(["a"], 1) >= 0).sum())
            assert held <= recent.most_frames(total, history)
            kept = total - min(history, RECENT_HISTORY)
            assert kept < 1 or store.can_resume("a", kept)
