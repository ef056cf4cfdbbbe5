"""Layers that see everything, a window, a chunk, and a recurrent state, in one sequence: what one
of them cannot do the sequence cannot, and whatever is refused has changed none of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cacheshrink_hybrid.errors import CacheFullError, NotSupportedError
from cacheshrink_hybrid.pool import arena
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.layout import compile_layout
from cacheshrink_hybrid.pool.lifetime import LayerRows, RowSet
from cacheshrink_hybrid.pool.state_map import StateRows
from cacheshrink_hybrid.pool.store import SequenceStore

ALL, WINDOW, CHUNK, STATE = range(4)
KEYS = (1, 2, 3)
"""What a token's row is multiplied by in the layers that see all, a window, a chunk."""


class Mixed:
    """Tokens are small numbers; a layer stores them times its key, the state their sum."""

    def __init__(self, num_frames: int = 64) -> None:
        rows = [
            LayerRows(layer_idx=ALL, row_bytes=32),
            LayerRows(layer_idx=WINDOW, row_bytes=32, window=5),
            LayerRows(layer_idx=CHUNK, row_bytes=32, window=4),
        ]
        states = [StateRows(layer_idx=STATE, name="sum", num_rows=1, row_bytes=8)]
        self.layout = compile_layout(rows, states, tokens_per_frame=8)
        self.pool = FramePool(num_frames, self.layout.frame_bytes, poison=True)
        self.store = SequenceStore(self.layout, self.pool)

    def step(self, **tokens: list[int]) -> None:
        for name in tokens:
            if name not in self.store:
                self.store.create(name)
        self.store.reserve(list(tokens), [len(new) for new in tokens.values()])
        for name, new in tokens.items():
            begin = self.store.num_tokens(name)
            for number, view, frames in self._rows(name):
                values = torch.tensor(new, dtype=torch.uint8)[:, None] * KEYS[number]
                arena.write_rows(view, frames, begin, values.expand(-1, view.shape[2]))
            self._add(name, sum(new))
        self.store.commit(list(tokens))
        self.store.check_integrity()

    def _rows(self, name: str) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Of each layer that stores rows: its number, its rows in the pool, its frames."""
        for number in (ALL, WINDOW, CHUNK):
            kind, place = self.layout.places[RowSet(number)]
            view = arena.row_view(self.pool, self.layout.classes[kind], place)
            yield number, view, self.store.frame_table([name], kind)[0].long()

    def _add(self, name: str, value: int) -> None:
        read, write = (table.long() for table in self.store.state_tables([name]))
        before = arena.read_state(self.pool, self.layout.state, read, 0)
        now = before + value if self.store.num_tokens(name) else torch.full_like(before, value)
        arena.write_state(self.pool, self.layout.state, write, 0, now)

    def seen(self, name: str) -> tuple[list[int], list[int], list[int]]:
        """What the layers have that the next token sees, in units of tokens."""
        count = self.store.num_tokens(name)
        begins = 0, max(0, count + 1 - 5), count - count % 4
        found = []
        for (number, view, frames), begin in zip(self._rows(name), begins, strict=True):
            rows = arena.read_rows(view, frames, begin, count)[:, 0]
            found.append((rows // KEYS[number]).tolist())
        return tuple(found)

    def state(self, name: str) -> int:
        read, _ = (table.long() for table in self.store.state_tables([name]))
        return int(arena.read_state(self.pool, self.layout.state, read, 0).flatten()[0])

    def resumable(self, name: str) -> list[int]:
        last = self.store.num_tokens(name)
        return [place for place in range(last + 1) if self.store.can_resume(name, place)]


def test_a_step_reaches_all_kinds() -> None:
    mixed = Mixed()
    mixed.step(a=[1, 2, 3, 4, 5, 6])
    assert mixed.seen("a") == ([1, 2, 3, 4, 5, 6], [3, 4, 5, 6], [5, 6])
    assert mixed.state("a") == 21
    mixed.step(a=[7], b=[9])
    assert mixed.seen("a") == ([1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7], [5, 6, 7])
    assert mixed.seen("b") == ([9], [9], [9])
    assert (mixed.state("a"), mixed.state("b")) == (28, 9)


def test_what_one_kind_has_no_room_for_changes_none() -> None:
    mixed = Mixed(num_frames=8)
    mixed.step(a=[1, 2, 3, 4], b=[5])
    before = mixed.seen("a"), mixed.state("a"), mixed.store.digest("b"), mixed.pool.num_held
    with pytest.raises(CacheFullError):
        mixed.step(a=list(range(5, 40)), b=[6])
    mixed.store.check_integrity()
    after = mixed.seen("a"), mixed.state("a"), mixed.store.digest("b"), mixed.pool.num_held
    assert after == before
    mixed.step(b=[6])
    assert mixed.seen("b") == ([5, 6], [5, 6], [5, 6])


def test_all_kinds_must_be_able_to_go_back() -> None:
    """The window lacks tokens at 8, the state is not kept at 11, and the chunk begins at 12."""
    mixed = Mixed()
    mixed.step(a=[1] * 4)
    mixed.store.checkpoint("a")
    mixed.step(a=[2] * 4)
    mixed.store.checkpoint("a")
    mixed.step(a=[3] * 4)
    mixed.store.checkpoint("a")
    mixed.step(a=[4] * 1)
    assert mixed.store.checkpoints("a") == [4, 8, 12]
    assert mixed.resumable("a") == [0, 12, 13]
    before = mixed.store.digest("a")
    for place in (4, 8, 11):
        with pytest.raises(NotSupportedError):
            mixed.store.remove("a", place)
        assert mixed.store.digest("a") == before
    mixed.store.remove("a", 12)
    assert mixed.seen("a") == ([1] * 4 + [2] * 4 + [3] * 4, [3] * 4, [])
    assert mixed.state("a") == 24


def test_a_copied_prefix_has_all_kinds() -> None:
    mixed = Mixed()
    mixed.step(a=[1, 2, 3])
    mixed.store.checkpoint("a")
    mixed.step(a=[4, 5])
    mixed.store.copy_prefix("a", "b", 3)
    mixed.step(b=[9])
    assert mixed.seen("b") == ([1, 2, 3, 9], [1, 2, 3, 9], [])
    assert mixed.state("b") == 15
    assert mixed.seen("a") == ([1, 2, 3, 4, 5], [2, 3, 4, 5], [5])
    assert mixed.state("a") == 15
    mixed.store.free("a")
    mixed.step(b=[1])
    assert mixed.seen("b") == ([1, 2, 3, 9, 1], [2, 3, 9, 1], [1])
    mixed.store.free("b")
    assert mixed.pool.num_held == 0


def test_a_place_that_was_gone_back_behind_is_kept_again() -> None:
    mixed = Mixed()
    for token in (1, 2, 3):
        mixed.step(a=[token])
        mixed.store.checkpoint("a")
    mixed.store.remove("a", 1)
    assert mixed.store.checkpoints("a") == [1]
    mixed.step(a=[7])
    mixed.store.checkpoint("a")
    mixed.step(a=[8])
    assert mixed.store.checkpoints("a") == [1, 2]
    mixed.store.remove("a", 2)
    assert mixed.state("a") == 8
    assert mixed.seen("a") == ([1, 7], [1, 7], [1, 7])
