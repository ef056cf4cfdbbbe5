"""Recurrent states of a batch as tensors in the pool.

The mixers of transformers write to their states in place, so a state has to be one dense tensor.
States of B sequences therefore lie in one run of neighbouring frames, `frames per state` to a
sequence, each a byte string in the order of the layers; a state tensor is a strided view of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..codecs.state import StateCodec
from ..lasting import lasting_tensors
from .frame_pool import FramePool
from .state_map import ROW_ALIGNMENT, StateMap, StateRows


@dataclass(frozen=True, slots=True)
class StateShape:
    """One tensor of fixed size that a layer keeps per sequence: number `number` of its `kind`.

    Kinds are `conv` and `recurrent`, as cache layers of transformers number their states.

    Attributes:
        codec: of a coded state, whose bytes the tensor is; None for numbers.
    """

    layer_idx: int
    kind: str
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    codec: StateCodec | None = None

    def rows(self) -> StateRows:
        """Its rows for the layout: of 16 bytes or less, because tensors of any size come before
        it, each from a multiple of 16 bytes on, and no row may be cut by a frame."""
        num_bytes = math.prod(self.shape) * self.dtype.itemsize
        row = math.gcd(ROW_ALIGNMENT, num_bytes)
        return StateRows(
            layer_idx=self.layer_idx,
            name=f"{self.kind}{self.number}",
            num_rows=num_bytes // row,
            row_bytes=row,
        )

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor (B, ...) is of this shape and type."""
        return (self.shape, self.dtype) == (tuple(tensor.shape[1:]), tensor.dtype)

    def view(self, memory: Tensor, batch_size: int, start: int, stride: int) -> Tensor:
        """The tensor (B, ...) in bytes: B pieces, `stride` bytes apart, the first from byte `start`
        on."""
        size = self.dtype.itemsize
        inner = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        return memory.view(self.dtype).as_strided(
            (batch_size, *self.shape), (stride // size, *inner), start // size
        )


def first_byte(state: StateMap, number: int, frame_bytes: int) -> int:
    """Where tensor `number` begins in a state whose frames are neighbours."""
    assert state.seamless, "rows divide what tensors are aligned to, so they never straddle"
    first = state.slices[number][0]
    return first.frame * frame_bytes + first.offset


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the state tensor of a batch lies: B pieces from byte `start` of the arena on, `stride`
    bytes apart."""

    pool: FramePool
    shape: StateShape
    batch_size: int
    start: int
    stride: int

    def takes(self, tensor: Tensor) -> bool:
        return len(tensor) == self.batch_size and self.shape.fits(tensor)

    def view(self) -> Tensor:
        """The tensor, looked up in the arena as it is now; it can be written to in every mode."""
        with lasting_tensors(), torch.enable_grad():
            return self.shape.view(self.pool.arena, self.batch_size, self.start, self.stride)


Place = Callable[[int, Tensor], Placement | None]
"""Where tensor `number`, which has this value now, is to lie; None for memory of its own."""


class PooledStates(MutableMapping):
    """Tensors by number, as a cache layer of transformers keeps them; each is None, in the pool, or
    a tensor of its own. What is assigned is copied to the pool where it has a place there.

    Args:
        values: tensors to begin with.
        place: finds places.
    """

    def __init__(self, values: Mapping[int, Tensor | None], place: Place) -> None:
        self._place = place
        self._values: dict[int, Tensor | Placement | None] = {}
        self._views: dict[int, tuple[Tensor, Tensor]] = {}
        self.update(values)

    def __getitem__(self, number: int) -> Tensor | None:
        value = self._values[number]
        if not isinstance(value, Placement):
            return value
        arena, view = self._views.get(number, (None, None))
        if arena is not value.pool.arena:
            view = value.view()
            self._views[number] = value.pool.arena, view
        return view

    def __setitem__(self, number: int, value: Tensor | None) -> None:
        old = self._values.get(number)
        if value is None or not value.numel():
            self._values[number] = value
            return
        if not (isinstance(old, Placement) and old.takes(value)):
            self._values[number] = value
            place = self._place(number, value)
            if place is None:
                return
            self._values[number] = place
            self._views.pop(number, None)
        view = self[number]
        assert view is not None
        view.copy_(value.detach())

    def __getstate__(self) -> dict[str, Any]:
        """Without views, which a copy would have of memory of their own."""
        return {**self.__dict__, "_views": {}}

    def __delitem__(self, number: int) -> None:
        del self._values[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def loose(self) -> list[Tensor]:
        """Tensors that are not in the pool."""
        return [value for value in self._values.values() if isinstance(value, Tensor)]

    def take_out(self) -> None:
        """Give every tensor memory of its own again."""
        for number, value in self._values.items():
            if isinstance(value, Placement):
                self._values[number] = value.view().clone()
