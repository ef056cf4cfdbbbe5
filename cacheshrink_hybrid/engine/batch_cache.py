"""The transformers cache of one step: a batch of sequences of unequal lengths in a store.

Layers that kernels read find each sequence in the slots of its positions. For the others sequences
are aligned on the right: with S the longest history, a sequence of n tokens occupies the slots
S - n to S - 1, and the new tokens come behind. Rows of the slots before are read from the sink
frame and masked. Only distances between slots matter to attention, so the alignment may change from
step to step.
"""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from ..caches.planned_layout import PlannedLayout
from ..caches.pooled_layers import PooledAttentionLayer, PooledLinearLayer, pooled_layers
from ..kernels.backend import Backend
from ..kernels.states.pages import StatePlace
from ..pool import arena
from ..pool.lifetime import FIRST, RECENT, RowSet
from ..pool.memory import (
    ExactRows,
    PoolMemory,
    RowPlaces,
    RowStep,
    StateStep,
    place_in_state,
    stepping_backend,
)
from ..pool.state_tensors import Placement, StateShape, first_byte
from ..pool.store import SequenceStore
from ..states.layer import StateCacheMixin
from .coverage import KernelCoverage
from .step_tables import StepTables


class BatchCache(Cache, PoolMemory):
    """A view of some sequences of a store, for one forward pass after the other.

    Args:
        config: of the model.
        planned: what the model stores.
        store: sequences with its layout.
        coverage: which layers kernels take; None for none.
        backend: who decodes, see `RowMemory`.
    """

    slots_are_positions = True
    records_past = False

    def __init__(
        self,
        config: PretrainedConfig,
        planned: PlannedLayout,
        store: SequenceStore,
        coverage: KernelCoverage | None = None,
        backend: Backend = "torch",
    ) -> None:
        self.planned = planned
        self.store = store
        self.coverage = coverage or KernelCoverage(frozenset(), frozenset(), {}, complete=False)
        self.backend = backend
        self.state_backend = stepping_backend(backend, store.pool.device)
        state, frame_bytes = planned.layout.state, planned.layout.frame_bytes
        self._places: dict[int, dict[tuple[str, int], StatePlace]] = {}
        for number, shape in enumerate(planned.states):
            if shape.layer_idx in self.coverage.states:
                place = place_in_state(state, number, frame_bytes)
                self._places.setdefault(shape.layer_idx, {})[shape.kind, shape.number] = place
        self._row_places: dict[int, RowPlaces] = {}
        self._step: StepTables | None = None
        self._notes: dict[Hashable, Any] = {}
        """Of the step, see `RowStep`."""
        self._copies_states = False
        self.codes_every_boundary = False
        """Whether this step's states are copied out for torch, and back."""
        super().__init__(layers=pooled_layers(config, self))
        self._ids: list[Hashable] = []
        self._lengths: list[int] = []
        """Of the sequences that are shown; none in a step that kernels take completely."""
        self._num_past = 0
        """Slots before the new tokens, as models see them."""
        self._index: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._staging: Tensor | None = None

    def tables(self, batch_size: int, num_new: int, max_tokens: int) -> StepTables:
        """Empty tables for a step of so many sequences; see `StepTables`."""
        return StepTables(
            self.planned.layout,
            batch_size,
            num_new,
            max_tokens=max_tokens,
            replay_lengths=self.planned.replay_lengths,
            device=self.store.pool.device,
        )

    def begin_step(self, step: StepTables) -> None:
        """Show a step that kernels take completely, each sequence with one new token."""
        self._ids, self._lengths = [], []
        self._step, self._notes, self._copies_states = step, {}, False
        # Only kernels know the lengths, of which the tables tell them. Models ask whether there is
        # a history, and for masks, which nobody reads: the shortest will do.
        self._show_past(1)
        self._mark_states(started=True)

    def begin(
        self,
        seq_ids: Sequence[Hashable],
        step: StepTables | None = None,
        *,
        token_by_token: bool = False,
    ) -> None:
        """Show these sequences, whose next tokens have been reserved, and load their states.

        Args:
            step: for the layers that kernels take.
            token_by_token: states are coded as if each token came in a step of its own.
        """
        self.codes_every_boundary = token_by_token  # layers ask for it at each pass
        self._step, self._notes, self._copies_states = step, {}, True
        self._forget_states()
        self._ids = list(seq_ids)
        self._lengths = [self.store.num_tokens(seq_id) for seq_id in seq_ids]
        self._index.clear()
        self._tables = {
            number: self.store.frame_table(seq_ids, number).long()
            for number in range(len(self.planned.layout.classes))
        }
        self._show_past(max(self._lengths))
        if self.planned.states:
            read, write = self.store.state_tables(seq_ids)
            self._read, self._write = read.long(), write.long()
            self._load_states()

    def _show_past(self, num_past: int) -> None:
        self._num_past = num_past
        for layer in self.layers:
            if isinstance(layer, PooledAttentionLayer):
                layer.cumulative_length = num_past

    def finish(self) -> None:
        """Write the states back; the forward pass is over."""
        if not self.planned.states or not self._copies_states:
            return
        for shape, view in zip(self.planned.states, self._state_views(), strict=True):
            states = self._states_of(shape)
            tensor, layer = states.get(shape.number), self.layers[shape.layer_idx]
            if tensor is None and isinstance(layer, StateCacheMixin) and shape.kind == "recurrent":
                # A coded state is first written after a whole ring of inputs, and read before.
                tensor = layer.layout.codec.zeros(len(view), view.device)
            if tensor is not None and tensor.data_ptr() != view.data_ptr():
                view.copy_(tensor.detach())
        self._forget_states()
        self._whole_frames()[self._write.reshape(-1)] = self._staged()

    def _forget_states(self) -> None:
        """Those of the last pass, also of one that did not reach its end."""
        for shape in self.planned.states:
            self._states_of(shape)[shape.number] = None

    def _load_states(self) -> None:
        started = self._lengths[0] > 0
        assert all((n > 0) == started for n in self._lengths), "first chunks are fed one by one"
        self._mark_states(started=started)
        for layer in self.layers:
            if isinstance(layer, StateCacheMixin):
                layer.num_pending = self._lengths[0] % layer.layout.replay_length
        if not started:
            return
        torch.index_select(self._whole_frames(), 0, self._read.reshape(-1), out=self._staged())
        for shape, view in zip(self.planned.states, self._state_views(), strict=True):
            layer = self.layers[shape.layer_idx]
            if shape.kind == "conv":
                layer.dtype = view.dtype
                layer.is_conv_states_initialized[shape.number] = True
                layer.conv_kernel_size[shape.number] = view.shape[-1]
            else:
                written = not isinstance(layer, StateCacheMixin) or shape.number > 0
                written = written or self._lengths[0] >= layer.layout.replay_length
                layer.is_recurrent_states_initialized[shape.number] = written
                if not written:
                    continue
            self._states_of(shape)[shape.number] = view
            layer.device = view.device

    def _mark_states(self, *, started: bool) -> None:
        """Let layers know whether there is a history; nothing is loaded yet."""
        for layer in self.layers:
            if isinstance(layer, PooledLinearLayer):
                for number in range(layer.number_of_states):
                    layer.has_previous_state[number] = started and (
                        number == 0 or not isinstance(layer, StateCacheMixin)
                    )
                    layer.is_conv_states_initialized[number] = False
                    layer.is_recurrent_states_initialized[number] = False
            if isinstance(layer, StateCacheMixin):
                layer.recorded = None

    def _whole_frames(self) -> Tensor:
        """The arena by frame, in words, which copy faster than bytes: (frames, words)."""
        return self.store.pool.frames.view(torch.int64)

    def _staged(self) -> Tensor:
        """Room for the state frames of the batch, (B * state frames, words), kept for the next
        step."""
        state, frame_bytes = self.planned.layout.state, self.store.layout.frame_bytes
        words = frame_bytes // torch.int64.itemsize
        count = len(self._ids) * state.num_frames
        if self._staging is None or len(self._staging) < count:
            self._staging = torch.zeros(
                count, words, dtype=torch.int64, device=self.store.pool.device
            )
        return self._staging[:count]

    def _state_views(self) -> list[Tensor]:
        """The state tensors within `_staged`, (B, ...) each. Rows divide frames, so every tensor is
        one piece per sequence."""
        layout, staged = self.planned.layout, self._staged()
        stride = layout.state.num_frames * layout.frame_bytes
        return [
            shape.view(
                staged,
                len(self._ids),
                first_byte(layout.state, number, layout.frame_bytes),
                stride,
            )
            for number, shape in enumerate(self.planned.states)
        ]

    def _states_of(self, shape: StateShape) -> MutableMapping[int, Tensor | None]:
        layer = self.layers[shape.layer_idx]
        return layer.conv_states if shape.kind == "conv" else layer.recurrent_states

    # What kernels ask for

    def row_step(
        self, layer_idx: int, batch_size: int, num_new: int, first_slots: Tensor | None
    ) -> RowStep | None:
        step = self._step
        if step is None or layer_idx not in self.coverage.rows:
            return None
        assert num_new == step.num_new and batch_size == len(step.context_lens)
        if layer_idx not in self._row_places:
            dtypes = {row_set: rows.dtype for row_set, rows in self.planned.rows.items()}
            layer = RowPlaces.of(self.planned.layout, dtypes, layer_idx)
            self._row_places[layer_idx] = layer
        return RowStep(
            arena=self.store.pool.arena,
            frame_bytes=self.store.pool.frame_bytes,
            places=self._row_places[layer_idx],
            class_tables=step.row_tables,
            context_lens=step.context_lens,
            num_slots=step.num_slots,
            # Where one sequence is given many tokens, its tables have its length.
            ends_together=num_new > 1 and batch_size == 1,
            backend=self.backend,
            notes=self._notes,
        )

    def state_step(self, layer_idx: int, num_pending: int) -> StateStep | None:
        step = self._step
        if step is None or self._copies_states or layer_idx not in self.coverage.states:
            return None
        assert step.read_table is not None and step.write_table is not None
        layer = self.layers[layer_idx]
        assert isinstance(layer, StateCacheMixin)
        return StateStep(
            arena=self.store.pool.arena,
            frame_bytes=self.store.pool.frame_bytes,
            places=self._places[layer_idx],
            read_table=step.read_table,
            write_table=step.write_table,
            num_pending=step.num_pending[layer.layout.replay_length],
            backend=self.state_backend,
        )

    # What models ask for

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots before the new tokens, also where no layer attends."""
        return self._num_past

    # What attention layers ask for otherwise

    def write(self, layer_idx: int, begin: int, rows: Tensor) -> None:
        """Store rows (B, T, elements) as those of each sequence's next tokens, which are in the
        slots from `begin` on."""
        self._put(RowSet(layer_idx), begin, rows)

    def read(self, layer_idx: int, begin: int, end: int, *, lasting: bool = True) -> Tensor:
        return self._get(RowSet(layer_idx), begin, end)

    def exact_rows(
        self, layer_idx: int, rows: Tensor, first: Tensor, *, num_sinks: int, window: int
    ) -> ExactRows:
        begin, sinks = self._num_past, rows[:, :0]
        if num_sinks:
            row_set = RowSet(layer_idx, FIRST)
            view, table = self._view(row_set), self._tables[self.planned.layout.places[row_set][0]]
            arena.write_first(view, table, self._lengths, rows, num_sinks)
            sinks = arena.read_first(view, table, num_sinks)
        start = max(0, begin - window + 1) if window else begin
        if window:
            self._put(RowSet(layer_idx, RECENT), begin, rows)
            before = self._get(RowSet(layer_idx, RECENT), start, begin)
            rows = torch.cat([before, rows], dim=1)
        return ExactRows(sinks, rows, start)

    def _put(self, row_set: RowSet, begin: int, rows: Tensor) -> None:
        self.planned.rows[row_set].check(rows)
        number = self.planned.layout.places[row_set][0]
        # Longer steps are those of one sequence, and windows may have room for their end only.
        due = self.store.first_position(self._ids[0], number) if rows.shape[1] > 1 else 0
        skipped = max(0, due - self._lengths[0])
        frames, slots = self._slots(number, begin + skipped, begin + rows.shape[1])
        view = self._view(row_set)
        view[frames, slots] = rows[:, skipped:].to(view.dtype)

    def _get(self, row_set: RowSet, begin: int, end: int) -> Tensor:
        frames, slots = self._slots(self.planned.layout.places[row_set][0], begin, end)
        return self._view(row_set)[frames, slots]

    def place_state(
        self, layer_idx: int, kind: str, number: int, tensor: Tensor
    ) -> Placement | None:
        """None: `begin` loads states, and `finish` writes them back."""
        return None

    def _view(self, row_set: RowSet) -> Tensor:
        """All rows of one kind of a layer, (frames, T, elements)."""
        number, place = self.planned.layout.places[row_set]
        lifetime = self.planned.layout.classes[number]
        return arena.row_view(self.store.pool, lifetime, place, self.planned.rows[row_set].dtype)

    def _slots(self, number: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Frame and place there of the slots [begin, end) of each sequence, (B, end - begin)."""
        key = (number, begin, end)
        if key not in self._index:
            table = self._tables[number]
            lengths = torch.tensor(self._lengths, device=table.device)[:, None]
            slots = torch.arange(begin, end, device=table.device)
            positions = slots - (max(self._lengths) - lengths)
            T = self.planned.layout.classes[number].tokens_per_frame
            frames = table.gather(1, positions.clamp_min(0) // T)
            self._index[key] = frames * (positions >= 0), positions.clamp_min(0) % T
        return self._index[key]
