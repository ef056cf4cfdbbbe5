"""What a step finds of one layer in a pool, as kernels take it: bytes, tables and lengths.

A cache that decodes by kernels gives these out instead of tensors of history: `RowStep` for the
rows of an attention layer, `StateStep` for the state of a recurrent one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import KernelUnavailableError
from ..kernels.backend import Backend
from ..kernels.states.pages import StatePlace
from .layout import LifetimeClass
from .state_map import StateMap


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class RowStep:
    """T new tokens of B sequences in an attention layer, whose frames are there.

    Attributes:
        arena, frame_bytes: of the pool.
        lifetime, place: class of layers, and the layer's place in it.
        frame_table: (B, frames) int32, -1 where there is none.
        context_lens: slots of each sequence, the new ones included, (B,) int32; 0 for padding.
        slot_mapping: where each new token's row goes, (B * T,) int64; -1 for nowhere.
        num_slots: more than any slot.
        ends_together: every sequence has `num_slots` slots.
        first_slots: slots before these are padding, (B,) int32; None if there is none.
        first_new: slot of the first new token, where it is that of all sequences; None where slots
            are positions, of which the model knows the angles.
        backend: runs the kernels.
    """

    arena: Tensor
    frame_bytes: int
    lifetime: LifetimeClass
    place: int
    frame_table: Tensor
    context_lens: Tensor
    slot_mapping: Tensor
    num_slots: int
    ends_together: bool
    first_slots: Tensor | None = None
    first_new: int | None = None
    backend: Backend


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


def new_slots(frame_table: Tensor, positions: Tensor, tokens_per_frame: int) -> Tensor:
    """Slots in the pool of tokens at `positions` (B, T), (B * T,) int64: -1 where a frame is gone.

    Args:
        frame_table: (B, frames).
    """
    frames = frame_table.long().gather(1, positions // tokens_per_frame)
    slots = frames * tokens_per_frame + positions % tokens_per_frame
    return torch.where(frames < 0, -1, slots).flatten()


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
