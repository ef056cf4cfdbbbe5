"""A sequence store beside a plain model of it: Python lists of row bytes per sequence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from cacheshrink_hybrid.errors import CacheFullError, NotSupportedError
from cacheshrink_hybrid.pool import arena
from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.layout import LayerRows, Layout, compile_layout
from cacheshrink_hybrid.pool.state_map import StateRows
from cacheshrink_hybrid.pool.store import SequenceStore


def small_layout(*, state: bool = True, windows: tuple[int | None, ...] = (None, 12)) -> Layout:
    """Frames of 8 tokens with two layers per lifetime class, and a state of several frames."""
    rows = [
        LayerRows(layer_idx=2 * number + i, row_bytes=16 + 3 * i, window=window)
        for number, window in enumerate(windows)
        for i in range(2)
    ]
    states = [StateRows(layer_idx=9, name="recurrent", num_rows=11, row_bytes=70)] if state else []
    return compile_layout(rows, states, tokens_per_frame=8)


@dataclass
class Twin:
    """What a sequence should hold: per layer the rows of all tokens ever, and its states."""

    rows: dict[int, list[bytes]]
    state: bytes = b""
    checkpoints: dict[int, bytes] = field(default_factory=dict)
    parked: bool = False

    @property
    def num_tokens(self) -> int:
        return len(next(iter(self.rows.values())))


class Shadowed:
    """A store, and the twins of its sequences; each operation is done to both, then compared."""

    def __init__(
        self, layout: Layout, num_frames: int, *, seed: int = 0, history: int = 3, **settings
    ) -> None:
        self.layout = layout
        self.pool = FramePool(num_frames, layout.frame_bytes, poison=True)
        self.store = SequenceStore(layout, self.pool, history=history, **settings)
        self.twins: dict[int, Twin] = {}
        self.random = np.random.default_rng(seed)
        self.refusals = 0
        self.next_id = 0

    def attempt(self, operation: Callable[[], None], change: Callable[[], None]) -> bool:
        """Do `operation`; if it is refused nothing may have changed, else do `change` to twins."""
        tables = self.tables()
        evicted = self.store.evicted
        try:
            operation()
        except (CacheFullError, NotSupportedError):
            self.refusals += 1
            assert self.store.evicted == evicted
            assert self.tables() == tables
            return False
        change()
        for seq_id in [i for i in self.twins if i not in self.store]:
            assert self.twins.pop(seq_id).parked
        return True

    def tables(self) -> list[list]:
        """Every frame table; `check` compares the bytes behind them."""
        numbers = range(len(self.layout.classes))
        return [self.store.frame_table(self.store.seq_ids, n).tolist() for n in numbers]

    def create(self) -> int:
        seq_id, self.next_id = self.next_id, self.next_id + 1
        self.store.create(seq_id, priority=float(self.random.integers(4)))
        self.twins[seq_id] = Twin({idx: [] for idx in self.layout.class_of_layer})
        return seq_id

    def running(self) -> list[int]:
        return [seq_id for seq_id, twin in self.twins.items() if not twin.parked]

    def append(self, seq_ids: list[int], counts: list[int]) -> bool:
        """One step of a batch with unequal lengths, its rows and states random bytes."""

        def change() -> None:
            for seq_id, count in zip(seq_ids, counts, strict=True):
                self._write(seq_id, count)
            self.store.commit(seq_ids)

        return self.attempt(lambda: self.store.reserve(seq_ids, counts), change)

    def _write(self, seq_id: int, count: int) -> None:
        twin, store = self.twins[seq_id], self.store
        begin = twin.num_tokens
        for layer_idx, (number, place) in self.layout.class_of_layer.items():
            lifetime = self.layout.classes[number]
            view = arena.row_view(self.pool, lifetime, place)
            rows = self.random.integers(0, 256, (count, lifetime.row_bytes[place]), dtype=np.uint8)
            frames = store.frame_table([seq_id], number)[0].long()
            arena.write_rows(view, frames, begin, torch.from_numpy(rows))
            twin.rows[layer_idx] += [row.tobytes() for row in rows]
        if self.layout.state.num_frames and count:
            read, write = (table.long() for table in store.state_tables([seq_id]))
            old = arena.read_state(self.pool, self.layout.state, read, 0)
            assert old.numpy().tobytes() == (twin.state or bytes(old.numel()))
            rows = self.layout.state.rows[0]
            new = self.random.integers(0, 256, (1, rows.num_rows, rows.row_bytes), dtype=np.uint8)
            arena.write_state(self.pool, self.layout.state, write, 0, torch.from_numpy(new))
            twin.state = new.tobytes()

    def copy_prefix(self, source: int, num_tokens: int) -> bool:
        target, self.next_id = self.next_id, self.next_id + 1

        def change() -> None:
            twin = copy.deepcopy(self.twins[source])
            self.twins[target] = twin
            twin.parked = False
            self._cut(twin, num_tokens)

        return self.attempt(lambda: self.store.copy_prefix(source, target, num_tokens), change)

    def _cut(self, twin: Twin, num_tokens: int) -> None:
        if num_tokens != twin.num_tokens and self.layout.state.num_frames:
            twin.state = twin.checkpoints[num_tokens] if num_tokens else b""
        twin.checkpoints = {p: s for p, s in twin.checkpoints.items() if p <= num_tokens}
        for rows in twin.rows.values():
            del rows[num_tokens:]

    def remove(self, seq_id: int, begin: int) -> bool:
        twin = self.twins[seq_id]
        return self.attempt(
            lambda: self.store.remove(seq_id, begin), lambda: self._cut(twin, begin)
        )

    def checkpoint(self, seq_id: int) -> None:
        twin = self.twins[seq_id]
        self.store.checkpoint(seq_id)
        if twin.state:
            twin.checkpoints[twin.num_tokens] = twin.state

    def park(self, seq_id: int) -> None:
        self.store.park(seq_id, saved_flops=float(self.random.integers(1, 100)))
        self.twins[seq_id].parked = True

    def unpark(self, seq_id: int) -> None:
        self.store.unpark(seq_id)
        self.twins[seq_id].parked = False

    def free(self, seq_id: int) -> None:
        self.store.free(seq_id)
        del self.twins[seq_id]

    def check(self) -> None:
        """Integrity, and every stored byte equal to the twin's."""
        self.store.check_integrity()
        assert set(self.store.seq_ids) == set(self.twins)
        for seq_id, twin in self.twins.items():
            assert self.store.num_tokens(seq_id) == twin.num_tokens
            frames = [
                self.store.frame_table([seq_id], number)[0].long()
                for number in range(len(self.layout.classes))
            ]
            for layer_idx, (number, place) in self.layout.class_of_layer.items():
                begin = self.store.first_position(seq_id, number)
                lifetime = self.layout.classes[number]
                assert begin <= lifetime.first_needed(twin.num_tokens + 1)
                view = arena.row_view(self.pool, lifetime, place)
                rows = arena.read_rows(view, frames[number], begin, twin.num_tokens)
                assert rows.numpy().tobytes() == b"".join(twin.rows[layer_idx][begin:])
            if twin.state:
                read, _ = self.store.state_tables([seq_id])
                state = arena.read_state(self.pool, self.layout.state, read.long(), 0)
                assert state.numpy().tobytes() == twin.state
            if self.layout.state.num_frames:
                assert self.store.checkpoints(seq_id) == sorted(twin.checkpoints)
