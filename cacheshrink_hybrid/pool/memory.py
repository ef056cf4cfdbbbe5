"""The contract between a pool and the layers that remember in it.

A cache over a pool is a `RowMemory` to attention layers and a `StateMemory` to recurrent ones.
Torch is given tensors of history; kernels are given bytes, tables and lengths: a `RowStep` for the
rows of an attention layer, a `StateStep` for the state of a recurrent one.

The two are base classes, not structural protocols: layers meet caches of all kinds and tell a
memory from the others by `isinstance`, in every layer of every step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import KernelUnavailableError
from ..kernels.backend import Backend, implementation_on
from ..kernels.states.pages import StatePlace
from .layout import Layout
from .lifetime import KINDS, LifetimeClass, RowSet
from .state_map import StateMap
from .state_tensors import Placement

Found = TypeVar("Found")


def decoding_backend(backend: Backend, device: torch.device) -> Backend:
    """`backend` where kernels run on a device, `torch` where they do not: of rows. This is the one
    place that decides it; steps are told.

    Raises:
        KernelUnavailableError: `triton` or `cpu` was asked for and cannot run there.
    """
    return "torch" if implementation_on(backend, device) == "torch" else backend


def stepping_backend(backend: Backend, device: torch.device) -> Backend:
    """`decoding_backend` of recurrent states, which no kernels step on a CPU."""
    return backend if implementation_on(backend, device) == "triton" else "torch"


@dataclass(frozen=True, eq=False, slots=True)
class ExactRows:
    """Exact rows that one step may read.

    Attributes:
        first: of the first visible tokens, (B, num_sinks, bytes); anything where there are none
            yet.
        recent: of neighbouring slots up to the last one, the new ones included, (B, n, bytes).
        begin: slot of the first of them.
    """

    first: Tensor
    recent: Tensor
    begin: int


class ExactMemory(ABC):
    """What a cache owes attention layers of which some tokens are to stay exact."""

    @abstractmethod
    def exact_rows(
        self, layer_idx: int, rows: Tensor, first: Tensor, *, num_sinks: int, window: int
    ) -> ExactRows:
        """Store the exact rows (B, T, bytes) of a layer's newest tokens, after their coded rows,
        and give out what their queries may read.

        Args:
            first: first slot of each sequence that is not padding, (B or 1,); beyond the last slot
                where there is none yet.
            num_sinks, window: first and last tokens that stay exact.
        """


class RowMemory(ExactMemory):
    """What a cache owes the attention layers of a model: places for the rows of their new tokens,
    and the rows of those before.

    Attributes:
        backend: who reads and writes rows, decided before a step begins: `torch`; `auto`, kernels
            where they can and torch elsewhere; `triton` and `cpu`, these kernels or a refusal.
        slots_are_positions: each sequence lies in the slots of its positions, so masks say nothing.
            Otherwise sequences may be padded on the left, and the slots of padding count.
        wants_probabilities: the model attends by a function that forms them.
    """

    backend: Backend
    slots_are_positions: bool
    wants_probabilities: bool = False

    @abstractmethod
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots of a layer before the new ones; named as in transformers."""

    @abstractmethod
    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Slots that `query_length` new tokens of a layer see, their own included, and the first
        of them; named as in transformers."""

    @abstractmethod
    def row_step(
        self, layer_idx: int, batch_size: int, num_new: int, first_slots: Tensor | None
    ) -> RowStep | None:
        """Make room for the next `num_new` tokens of a layer, whose rows kernels write and read.

        Args:
            first_slots: first slot of each sequence that is not padding, (B,) int32, or None.

        Returns:
            None where torch has to take the step.
        """

    @abstractmethod
    def write(self, layer_idx: int, begin: int, rows: Tensor) -> None:
        """Store rows (B, T, elements) of a layer's tokens from slot `begin` on."""

    @abstractmethod
    def read(self, layer_idx: int, begin: int, end: int, *, lasting: bool = True) -> Tensor:
        """Rows (B, end - begin, elements) of the slots [begin, end) of a layer.

        Args:
            lasting: False if they are done with before the next call, whose rows may then take
                their place.
        """


class StateMemory(ABC):
    """What a cache owes the recurrent layers of a model: where their states lie.

    Attributes:
        state_backend: who steps states, as `backend` of a `RowMemory`; on a CPU `torch`.
        records_past: states wait outside of the pool, because their last tokens may be taken back;
            kernels do not step them.
    """

    state_backend: Backend
    records_past: bool

    @abstractmethod
    def place_state(
        self, layer_idx: int, kind: str, number: int, tensor: Tensor
    ) -> Placement | None:
        """Where a state tensor (B, ...), which has this value now, is to lie in the pool; None if
        it stays outside.

        Args:
            kind, number: see `StateShape`.
        """

    @abstractmethod
    def state_step(self, layer_idx: int, num_pending: int) -> StateStep | None:
        """Take in the next token of a layer by kernels; None where torch has to take it.

        Args:
            num_pending: inputs in its replay ring.
        """


class PoolMemory(RowMemory, StateMemory):
    """A cache over a pool, of a model with any layers."""


@dataclass(frozen=True, eq=False, slots=True)
class RowPlace:
    """Where the rows of one kind of a layer lie, in every step.

    Attributes:
        number, lifetime: class of layers that this one belongs to, and its number in the layout.
        place: of the layer in its class.
        dtype: of what a row holds.
    """

    number: int
    lifetime: LifetimeClass
    place: int
    dtype: torch.dtype


@dataclass(frozen=True, eq=False, slots=True)
class RowPlaces:
    """Where the rows of a layer lie.

    Attributes:
        by_kind: their places.
        notes: what readers work out of them, from step to step.
    """

    by_kind: Mapping[str, RowPlace]
    notes: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: Layout, dtypes: Mapping[RowSet, torch.dtype], layer_idx: int) -> RowPlaces:
        """Of a layer, whose rows hold what `dtypes` says."""
        found = {}
        for kind in KINDS:
            if (row_set := RowSet(layer_idx, kind)) in layout.places:
                number, place = layout.places[row_set]
                found[kind] = RowPlace(number, layout.classes[number], place, dtypes[row_set])
        return cls(found)


class RowTables(NamedTuple):
    """The rows of a lifetime class in a step: frames (B, frames) int32, -1 where there is none, and
    where each new token's row goes, (B * T,) int64, -1 for nowhere."""

    frames: Tensor
    slot_mapping: Tensor


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class RowStep:
    """T new tokens of B sequences in an attention layer, whose frames are there.

    Attributes:
        arena, frame_bytes: of the pool.
        places: of the layer's rows; those of first tokens are counted from `first_slots`.
        class_tables: by number of a lifetime class.
        context_lens: slots of each sequence, the new ones included, (B,) int32; 0 for padding.
        num_slots: more than any slot.
        ends_together: every sequence has `num_slots` slots.
        first_slots: slots before these are padding, (B,) int32; None if there is none.
        first_new: slot of the first new token, where it is that of all sequences; None where slots
            are positions, of which the model knows the angles.
        backend: runs the kernels.
        notes: what readers worked out in this step, for its other layers.
    """

    arena: Tensor
    frame_bytes: int
    places: RowPlaces
    class_tables: Mapping[int, RowTables]
    context_lens: Tensor
    num_slots: int
    ends_together: bool
    first_slots: Tensor | None = None
    first_new: int | None = None
    backend: Backend
    notes: dict[Hashable, Any]

    def place(self, kind: str) -> RowPlace:
        """Where the layer's rows of a kind lie."""
        return self.places.by_kind[kind]

    def tables(self, kind: str) -> RowTables:
        """Of the class of these rows."""
        return self.class_tables[self.place(kind).number]

    def noted(self, name: Hashable, find: Callable[[], Found]) -> Found:
        """Keeps what `find` gives under a name, for the layers that follow."""
        if name not in self.notes:
            self.notes[name] = find()
        return self.notes[name]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class StateStep:
    """One new token of B sequences in a recurrent layer.

    Attributes:
        arena, frame_bytes: of the pool.
        places: of each state tensor of the layer, by kind (`conv`, `recurrent`) and number.
        read_table, write_table: frames of each sequence's state, (B, frames) int32; a first frame
            of -1 for padding.
        num_pending: inputs in each replay ring, (B,) int32.
        backend: runs the kernels.
    """

    arena: Tensor
    frame_bytes: int
    places: Mapping[tuple[str, int], StatePlace]
    read_table: Tensor
    write_table: Tensor
    num_pending: Tensor
    backend: Backend


def new_slots(frame_table: Tensor, positions: Tensor, lifetime: LifetimeClass) -> Tensor:
    """Slots in the pool of tokens at `positions` (B, T), (B * T,) int64: -1 where a frame is gone,
    and for tokens that have no row in this class.

    Args:
        frame_table: (B, frames).
        positions: in classes with a limit, counted from the origin of each sequence.
    """
    T, limit = lifetime.tokens_per_frame, lifetime.limit
    outside = positions < 0
    if limit is not None:
        outside = outside | (positions >= limit)
        positions = positions.clamp(0, limit - 1)
    if not frame_table.shape[1]:
        return torch.full_like(positions, -1).flatten()
    frames = frame_table.long().gather(1, (positions // T).clamp_max(frame_table.shape[1] - 1))
    return torch.where((frames < 0) | outside, -1, frames * T + positions % T).flatten()


def place_in_state(state: StateMap, number: int, frame_bytes: int) -> StatePlace:
    """Where state tensor `number` of a layout lies, as kernels take it.

    Raises:
        KernelUnavailableError: rows that are no multiple of 16 bytes and leave gaps at frame ends.
    """
    rows, first = state.rows[number], state.slices[number][0]
    if rows.row_bytes % 16 == 0:
        return StatePlace(
            row_bytes=rows.row_bytes,
            first_frame=first.frame,
            first_offset=first.offset,
            first_rows=first.num_rows,
        )
    if frame_bytes % rows.row_bytes or first.offset % rows.row_bytes:
        raise KernelUnavailableError(
            f"rows of {rows.row_bytes} bytes leave gaps in frames of {frame_bytes} bytes, which "
            "kernels do not skip; use rows of a multiple of 16 bytes"
        )
    return StatePlace.packed(frame_bytes, first_byte=first.frame * frame_bytes + first.offset)
