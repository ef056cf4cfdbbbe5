"""Where the recurrent state of a sequence lies: one byte string, cut over any frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROW_ALIGNMENT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRows:
    """One fixed-size tensor per sequence: `num_rows` rows of `row_bytes` bytes.

    Attributes:
        name: what it holds, such as `conv` or `recurrent`; unique within its layer.
    """

    layer_idx: int
    name: str
    num_rows: int
    row_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSlice:
    """Rows of a state tensor that lie one after the other in one frame of a state.

    Attributes:
        first_row, num_rows: which rows.
        frame: number of the frame within the sequence's state.
        offset: byte in the frame where the first of them starts.
    """

    first_row: int
    num_rows: int
    frame: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMap:
    """Where the recurrent state of one sequence lies.

    Attributes:
        rows: the tensors, in order.
        slices: per tensor, its pieces.
        num_frames: frames of one state.
        seamless: every tensor lies in one piece when the frames are neighbours.
    """

    rows: tuple[StateRows, ...]
    slices: tuple[tuple[StateSlice, ...], ...]
    num_frames: int
    seamless: bool

    @property
    def useful_bytes(self) -> int:
        return sum(rows.num_bytes for rows in self.rows)


def aligned(num_bytes: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-num_bytes // alignment) * alignment


def place_state(states: Sequence[StateRows], frame_bytes: int) -> StateMap:
    """Lay out state tensors one after the other, each from a multiple of 16 bytes on, cut over
    frames between rows. `frame_bytes` must hold the widest row."""
    position, slices, seamless = 0, [], True
    for state in states:
        position = aligned(position, ROW_ALIGNMENT)
        pieces: list[StateSlice] = []
        row = 0
        while row < state.num_rows:
            frame, offset = divmod(position, frame_bytes)
            fitting = min((frame_bytes - offset) // state.row_bytes, state.num_rows - row)
            if not fitting:
                position = (frame + 1) * frame_bytes
                continue
            pieces.append(StateSlice(first_row=row, num_rows=fitting, frame=frame, offset=offset))
            row += fitting
            position += fitting * state.row_bytes
        first = pieces[0].frame * frame_bytes + pieces[0].offset
        seamless = seamless and position == first + state.num_bytes
        slices.append(tuple(pieces))
    return StateMap(
        rows=tuple(states),
        slices=tuple(slices),
        num_frames=-(-position // frame_bytes),
        seamless=seamless,
    )
