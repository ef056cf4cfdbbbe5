"""Rows of an edge, and of the two that it is cut into."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.lifetime import FIRST, LifetimeClass
from cacheshrink_hybrid.pool.prefixes.node import EdgeRows, rows_of, split_rows
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.pool.shadow import small_layout

ALL = LifetimeClass(window=None, tokens_per_frame=8, layer_ids=(0,), row_bytes=(16,), offsets=(0,))
WINDOW = LifetimeClass(window=12, tokens_per_frame=8, layer_ids=(0,), row_bytes=(16,), offsets=(0,))
FIRST_4 = LifetimeClass(
    window=None,
    kind=FIRST,
    limit=4,
    tokens_per_frame=3,
    layer_ids=(0,),
    row_bytes=(16,),
    offsets=(0,),
)


@pytest.mark.parametrize(
    ("lifetime", "edge", "at", "upper", "lower", "doubled"),
    [
        (ALL, (0, 30), 16, (0, 2), (16, 2), 0),
        (ALL, (0, 30), 19, (0, 3), (16, 2), 1),
        (ALL, (5, 7), 6, (0, 1), (0, 1), 1),
        (ALL, (9, 30), 10, (8, 1), (8, 3), 1),
        (FIRST_4, (0, 30), 2, (0, 1), (0, 2), 1),
        (FIRST_4, (0, 30), 3, (0, 1), (3, 1), 0),
        (FIRST_4, (0, 30), 9, (0, 2), (3, 0), 0),
        (FIRST_4, (10, 30), 20, (3, 0), (3, 0), 0),
    ],
)
def test_split_rows(lifetime, edge, at, upper, lower, doubled) -> None:
    """(first row, frames) before and behind the cut."""
    start, end = edge
    first = lifetime.frame_start(start)
    count = 0
    if lifetime.num_rows(start) < lifetime.num_rows(end):
        count = lifetime.table_length(end) - first // lifetime.tokens_per_frame
    rows = EdgeRows(first, np.arange(100, 100 + count, dtype=np.int64))
    above, below, both = split_rows(lifetime, rows, start, at, end)
    assert (above.first, len(above.frames)) == upper
    assert (below.first, len(below.frames)) == lower
    assert len(both) == doubled
    assert [*above.frames, *below.frames[doubled:]] == rows.frames.tolist()


@pytest.mark.parametrize(
    ("first", "at", "upper", "lower"),
    [
        (18, 10, (10, []), (18, [2, 3])),
        (18, 18, (18, []), (18, [2, 3])),
        (18, 20, (18, [2]), (18, [2, 3])),
        (18, 24, (18, [2]), (24, [3])),
        (30, 20, (20, []), (30, [])),
    ],
)
def test_split_rows_that_a_window_left(first, at, upper, lower) -> None:
    frames = [] if first == 30 else [2, 3]
    rows = EdgeRows(first, np.array(frames, dtype=np.int64))
    above, below, _ = split_rows(WINDOW, rows, 0, at, 30)
    assert (above.first, above.frames.tolist()) == upper
    assert (below.first, below.frames.tolist()) == lower


def test_rows_of_a_sequence() -> None:
    layout = small_layout(state=False, windows=(None, 12), first=4)
    store = SequenceStore(layout, FramePool(30, layout.frame_bytes))
    store.create("a")
    for _ in range(30):
        store.reserve(["a"], 1)
        store.commit(["a"])
    sequence = store._roster.known("a")
    found = [
        [rows_of(x, n, sequence, *edge) for n, x in enumerate(layout.classes)]
        for edge in ((0, 9), (9, 30), (20, 30))
    ]
    assert [[(x.first, len(x.frames)) for x in edge] for edge in found] == [
        [(0, 2), (9, 0), (0, 1)],
        [(8, 3), (19, 2), (0, 0)],
        [(16, 2), (19, 2), (0, 0)],
    ]
