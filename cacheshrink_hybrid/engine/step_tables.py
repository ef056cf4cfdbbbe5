"""Where a batch's new tokens go and what they read, as tensors of fixed shapes for kernels.

A batch is padded to one of few sizes, so that a recorded graph can be replayed for any number of
sequences. Rows of padding have no frames, no slots and no length: they read nothing and write
nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..kernels.pool_copy import pool_copy
from ..pool.layout import Layout
from ..pool.memory import RowTables, new_slots
from ..pool.store import SequenceStore


def batch_buckets(max_batch: int) -> list[int]:
    """Sizes to which batches of 1 .. max_batch sequences are padded: powers of two up to 8, then
    multiples of 8, of 16 beyond 64 and of 32 beyond 128, and `max_batch` itself."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, max_batch, 32)]
    return [size for size in sizes if size < max_batch] + [max_batch]


class StepTables:
    """Tables of one step of `batch_size` sequences, of which the last may be padding.

    Args:
        layout: of the store.
        batch_size, num_new: sequences, and new tokens of each.
        max_tokens: most tokens that a sequence may have.
        replay_lengths: of the model's coded states.
        device: of the pool.

    Attributes:
        num_slots: `max_tokens`.
        frame_tables: per lifetime class, (B, frames) int32.
        context_lens: (B,) int32, new tokens included; 0 for padding.
        slot_mappings: per lifetime class, (B * num_new,) int64; -1 for padding.
        read_table, write_table: frames of states, (B, frames) int32; None without states.
        num_pending: per replay length, inputs in the rings, (B,) int32.
    """

    def __init__(
        self,
        layout: Layout,
        batch_size: int,
        num_new: int,
        *,
        max_tokens: int,
        replay_lengths: Iterable[int] = (),
        device: torch.device,
    ) -> None:
        self.layout = layout
        self.num_new = num_new
        self.num_slots = max_tokens
        whole = {"dtype": torch.int32, "device": device}
        self.frame_tables = [
            torch.full((batch_size, lifetime.table_length(max_tokens)), -1, **whole)
            for lifetime in layout.classes
        ]
        self.context_lens = torch.zeros(batch_size, **whole)
        self.slot_mappings = [
            torch.full((batch_size * num_new,), -1, dtype=torch.int64, device=device)
            for _ in layout.classes
        ]
        self.read_table: Tensor | None = None
        self.write_table: Tensor | None = None
        if layout.state.num_frames:
            self.read_table = torch.full((batch_size, layout.state.num_frames), -1, **whole)
            self.write_table = self.read_table.clone()
        self.num_pending = {
            length: torch.zeros(batch_size, **whole) for length in sorted(set(replay_lengths))
        }

    @cached_property
    def row_tables(self) -> dict[int, RowTables]:
        """By number of a lifetime class, for `RowStep`."""
        return dict(enumerate(map(RowTables, self.frame_tables, self.slot_mappings)))

    def fill(self, store: SequenceStore, seq_ids: Sequence[Hashable]) -> None:
        """Show these sequences, whose new tokens are reserved; the other rows become padding."""
        count = len(seq_ids)
        before = store.context_lens(seq_ids)
        self.context_lens[:count] = before + self.num_new
        self.context_lens[count:] = 0
        positions = before.long()[:, None] + torch.arange(self.num_new, device=before.device)
        for number, lifetime in enumerate(self.layout.classes):
            table = store.frame_table(seq_ids, number)
            # Entries behind a sequence's last are never looked at; they may be old ones.
            self.frame_tables[number][:count, : table.shape[1]] = table
            self.frame_tables[number][count:, :1] = -1
            mapping = self.slot_mappings[number]
            mapping[: count * self.num_new] = new_slots(table, positions, lifetime)
            mapping[count * self.num_new :] = -1
        if self.read_table is not None and self.write_table is not None:
            self.read_table[count:, 0] = -1
            self.write_table[count:, 0] = -1
            if count:
                self.read_table[:count], self.write_table[:count] = store.state_tables(seq_ids)
            if max(self.num_pending, default=1) > 1:
                self._move_states(store)
        for length, pending in self.num_pending.items():
            pending[:count] = before % length
            pending[count:] = 0

    def _move_states(self, store: SequenceStore) -> None:
        """Copy states that are to be written elsewhere, since rings are continued in place."""
        assert self.read_table is not None and self.write_table is not None
        moved = torch.where(self.read_table != self.write_table, self.read_table, -1)
        arena, frame_bytes = store.pool.arena, store.pool.frame_bytes
        targets = self.write_table.flatten()
        pool_copy(arena, arena, moved.flatten(), targets, frame_bytes=frame_bytes)
        self.read_table.copy_(self.write_table)
