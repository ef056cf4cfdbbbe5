"""Rows of a batch of sequences that all have the same number of tokens, to and from the pool."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..kernels.backend import Backend
from ..lasting import lasting_tensors
from ..pool.arena import read_first, row_view, write_first
from ..pool.lifetime import FIRST, RECENT, RowSet
from ..pool.memory import ExactRows, RowPlaces, RowStep, RowTables, new_slots
from ..pool.store import SequenceStore
from .planned_layout import PlannedLayout

MOST_COPIES = 16
"""Sequences that are read one by one; in larger batches one gather costs less."""


@dataclass(eq=False, slots=True)
class _SharedStep:
    """What the layers of a step by kernels have in common.

    Attributes:
        begin, end: its tokens.
        lens: `end` of every sequence.
        tables, notes: see `RowStep`.
    """

    begin: int
    end: int
    lens: Tensor
    tables: dict[int, RowTables] = field(default_factory=dict)
    notes: dict[Hashable, Any] = field(default_factory=dict)


class BatchRows:
    """Reads and writes rows of a batch; remembers between layers where they lie.

    Args:
        planned: what the model's layers store.
        store: has the sequences, with these lifetime classes.
    """

    def __init__(self, planned: PlannedLayout, store: SequenceStore) -> None:
        self.shapes, self.layout = planned.rows, planned.layout
        self.store = store
        self._ids: list[Hashable] = []
        self._start()

    def _start(self) -> None:
        """Remember nothing yet."""
        self._views: dict[RowSet, tuple[Tensor, Tensor, Tensor]] = {}
        self._places: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._places_end = 0
        self._tables: dict[int, tuple[int, Tensor]] = {}
        self._buffers: dict[torch.dtype, Tensor] = {}
        self._layers: dict[int, RowPlaces] = {}
        self._shared: _SharedStep | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what is looked up again: views, in a copy, would be of memory of their own."""
        kept = ("shapes", "layout", "store", "_ids")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def show(self, seq_ids: Sequence[Hashable]) -> None:
        """Let the batch be these sequences."""
        self._ids = list(seq_ids)
        self.forget()

    def forget(self) -> None:
        """Look everything up again: sequences were cut or changed places."""
        self._places.clear()
        self._tables.clear()
        self._shared = None

    def write(self, row_set: RowSet, begin: int, rows: Tensor) -> None:
        """Store rows (B, T, elements) of the tokens from `begin` on, which are reserved."""
        number, _ = self.layout.places[row_set]
        view, _ = self._view(row_set)
        T = view.shape[1]
        # What a window let go of already is not written.
        start = max(begin, self.store.first_position(self._ids[0], number))
        key = (number, start, begin + rows.shape[1])
        if key not in self._places:
            if self._places_end != key[2]:
                self._places, self._places_end = {}, key[2]
            tokens = torch.arange(start, key[2], device=view.device)
            frames = self._table(number)[:, tokens // T]
            self._places[key] = frames, tokens % T
        frames, slots = self._places[key]
        view[frames, slots] = rows[:, start - begin :].to(view.dtype)

    def exact(self, layer_idx: int, begin: int, rows: Tensor) -> ExactRows:
        """Store the exact rows (B, T, bytes) of the tokens from `begin` on, which are reserved, and
        give out those that their queries may read."""
        first, recent = (RowSet(layer_idx, kind) for kind in (FIRST, RECENT))
        sinks, start = rows[:, :0], begin
        if first in self.layout.places:
            number, _ = self.layout.places[first]
            limit = self.layout.classes[number].limit
            assert limit is not None
            view, table = self._view(first)[0], self._table(number)
            write_first(view, table, [begin - origin for origin in self.origins], rows, limit)
            sinks = read_first(view, table, limit)
        if recent in self.layout.places:
            number, _ = self.layout.places[recent]
            window = self.layout.classes[number].window
            assert window is not None
            self.write(recent, begin, rows)
            start = max(0, begin - window + 1)
            if start < begin:
                rows = torch.cat([self.read(recent, start, begin, lasting=False), rows], dim=1)
        return ExactRows(sinks, rows, start)

    def held(self, row_set: RowSet, end: int) -> tuple[int, Tensor]:
        """Rows (B, n, elements) that are stored of the tokens before `end`, and the first of these
        tokens, counted as the class counts them."""
        number, _ = self.layout.places[row_set]
        limit = self.layout.classes[number].limit
        if limit is not None:
            count = min(limit, end)
            return 0, read_first(self._view(row_set)[0], self._table(number), count)
        begin = self.store.first_position(self._ids[0], number)
        return begin, self.read(row_set, begin, end)

    def restore(self, row_set: RowSet, begin: int, rows: Tensor) -> None:
        """Store what `held` gave, in the places of tokens that are reserved."""
        number, _ = self.layout.places[row_set]
        if self.layout.classes[number].limit is None:
            self.write(row_set, begin, rows)
        else:
            view, table = self._view(row_set)[0], self._table(number)
            write_first(view, table, [begin] * len(rows), rows, rows.shape[1])

    @property
    def origins(self) -> list[int]:
        """First slot of each sequence that is not padding."""
        return [self.store.origin(seq_id) for seq_id in self._ids]

    def step(
        self, layer_idx: int, begin: int, end: int, first_slots: Tensor | None, backend: Backend
    ) -> RowStep:
        """The step of the tokens [begin, end), which are reserved, for kernels."""
        pool, shared, places = self.store.pool, self._shared, self._places_of(layer_idx)
        if shared is None or (shared.begin, shared.end) != (begin, end):
            count = len(self._ids)
            lens = torch.full((count,), end, dtype=torch.int32, device=pool.device)
            shared = self._shared = _SharedStep(begin, end, lens)
        for place in places.by_kind.values():
            if place.number not in shared.tables:
                shared.tables[place.number] = self._step_tables(place.number, begin, end)
        return RowStep(
            arena=pool.arena,
            frame_bytes=pool.frame_bytes,
            places=places,
            class_tables=shared.tables,
            context_lens=shared.lens,
            num_slots=end,
            ends_together=True,
            first_slots=first_slots,
            first_new=begin,
            backend=backend,
            notes=shared.notes,
        )

    def is_ready(self, layer_idx: int, begin: int, end: int) -> bool:
        """Whether layers whose rows live as long as those of this one took this step before it."""
        shared = self._shared
        if shared is None or (shared.begin, shared.end) != (begin, end):
            return False
        places = self._places_of(layer_idx).by_kind.values()
        return all(place.number in shared.tables for place in places)

    def _places_of(self, layer_idx: int) -> RowPlaces:
        if layer_idx not in self._layers:
            dtypes = {row_set: shape.dtype for row_set, shape in self.shapes.items()}
            self._layers[layer_idx] = RowPlaces.of(self.layout, dtypes, layer_idx)
        return self._layers[layer_idx]

    def _step_tables(self, number: int, begin: int, end: int) -> RowTables:
        """Frames of the tokens before `end` in a class, and slots of those from `begin` on."""
        lifetime = self.layout.classes[number]
        table = self.store.frame_table(self._ids, number)
        positions = torch.arange(begin, end, device=table.device).expand(len(table), -1)
        if lifetime.limit is not None:
            positions = positions - torch.tensor(self.origins, device=table.device)[:, None]
        return RowTables(table, new_slots(table, positions, lifetime))

    def read(self, row_set: RowSet, begin: int, end: int, *, lasting: bool = True) -> Tensor:
        """Rows (B, end - begin, elements), copied frame by frame.

        Args:
            lasting: False if the rows are done with before the next call, whose rows may then take
                their place. Saves touching fresh memory at every layer of every step.
        """
        number, _ = self.layout.places[row_set]
        view, flat = self._view(row_set)
        T, width = view.shape[1:]
        first, offset = divmod(begin, T)
        table = self._table(number)[:, first : -(-end // T)]
        B, count = len(table), end - begin
        lasting = lasting or torch.is_grad_enabled()
        if B == 1 or offset or count % T == 0 or B > MOST_COPIES:
            found = self._room(view, (table.numel(), T * width), lasting)
            torch.index_select(flat, 0, table.reshape(-1), out=found)
            return found.view(B, -1, width)[:, offset : offset + count]
        # Sequence by sequence into one tensor without gaps, which a matrix product can read at
        # once; a slice of whole frames it would copy again.
        rows = self._room(view, (B, count, width), lasting)
        whole = count // T
        for row, frames in zip(rows, table, strict=True):
            target = row[: whole * T].view(whole, T * width)
            torch.index_select(flat, 0, frames[:whole], out=target)
        rows[:, whole * T :] = view[table[:, -1], : count - whole * T]
        return rows

    def _room(self, like: Tensor, shape: tuple[int, ...], lasting: bool) -> Tensor:
        """An uninitialized tensor; one that does not last lies in a buffer that is used again."""
        if lasting:
            return like.new_empty(shape)
        size = math.prod(shape)
        key = like.dtype
        if key not in self._buffers or self._buffers[key].numel() < size:
            with lasting_tensors():
                self._buffers[key] = like.new_empty(size + size // 4)
        return self._buffers[key][:size].view(shape)

    def _view(self, row_set: RowSet) -> tuple[Tensor, Tensor]:
        """All rows of a layer, (frames, T, elements) and (frames, T * elements)."""
        arena, *views = self._views.get(row_set, (None,))
        if arena is not self.store.pool.arena:
            number, place = self.layout.places[row_set]
            lifetime = self.layout.classes[number]
            with lasting_tensors():
                rows = row_view(self.store.pool, lifetime, place, self.shapes[row_set].dtype)
                flat = rows.as_strided(
                    (rows.shape[0], rows.shape[1] * rows.shape[2]), (rows.stride(0), 1)
                )
            views = [rows, flat]
            self._views[row_set] = (self.store.pool.arena, rows, flat)
        return views[0], views[1]

    def _table(self, number: int) -> Tensor:
        """Frames of the batch, (B, most frames) int64, looked up when they have changed."""
        changes = self.store.table_changes[number]
        known = self._tables.get(number)
        if known is None or known[0] != changes:
            table = self.store.frame_table(self._ids, number).long()
            self._tables[number] = known = changes, table
        return known[1]
