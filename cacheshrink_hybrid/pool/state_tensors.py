"""Recurrent states of a batch as tensors in the pool.

The mixers of transformers write to their states in place, so a state has to be one dense tensor.
States of B sequences therefore lie in one run of neighbouring frames, `frames per state` to a
sequence, each a byte string in the order of the layers; a state tensor is a strided view of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..lasting import lasting_tensors
from .frame_ledger import FRAME_MASK, Handles
from .frame_pool import FramePool
from .state_map import ROW_ALIGNMENT, StateMap, StateRows


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tensor (B, ...) lies: B pieces of `num_bytes` bytes, `stride` bytes apart."""

    pool: FramePool
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    stride: int

    def view(self) -> Tensor:
        """The tensor, looked up in the arena as it is now; it can be written to in every mode."""
        size = self.dtype.itemsize
        inner = [math.prod(self.shape[i + 1 :]) for i in range(1, len(self.shape))]
        with lasting_tensors(), torch.enable_grad():
            return self.pool.arena.view(self.dtype).as_strided(
                self.shape, (self.stride // size, *inner), self.start // size
            )


class PooledStates(MutableMapping):
    """Tensors by number, as a cache layer of transformers keeps them; each is None, a tensor of its
    own, or placed in the pool. What is assigned to a placed tensor is written to the pool, as long
    as it has its shape and type."""

    def __init__(self, values: MutableMapping[int, Any]) -> None:
        self._values: dict[int, Tensor | Placement | None] = dict(values)
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

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
        if (
            isinstance(old, Placement)
            and value is not None
            and (old.shape, old.dtype) == (tuple(value.shape), value.dtype)
        ):
            view = self[number]
            assert view is not None
            view.copy_(value.detach())
        else:
            self._values[number] = value

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

    def place(self, number: int, placement: Placement) -> None:
        """Move a tensor into the pool."""
        value = self[number]
        assert value is not None
        self._values[number] = placement
        self._views.pop(number, None)
        placement.view().copy_(value)

    def take_out(self) -> None:
        """Give every placed tensor memory of its own again."""
        for number, value in self._values.items():
            if isinstance(value, Placement):
                self._values[number] = value.view().clone()


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One state tensor (B, ...) of a layer: number `number` of its `kind`, conv or recurrent."""

    layer_idx: int
    kind: str
    number: int
    tensor: Tensor

    def rows(self) -> StateRows:
        """Its rows for the layout: of 16 bytes or less, because tensors of any size come before
        it, each from a multiple of 16 bytes on, and no row may be cut by a frame."""
        num_bytes = self.tensor[0].numel() * self.tensor.dtype.itemsize
        row = math.gcd(ROW_ALIGNMENT, num_bytes)
        return StateRows(
            layer_idx=self.layer_idx,
            name=f"{self.kind}{self.number}",
            num_rows=num_bytes // row,
            row_bytes=row,
        )


def placements(
    pool: FramePool, state: StateMap, handles: Handles, tensors: Sequence[StateTensor]
) -> list[Placement]:
    """Places of state tensors, one per entry of `state.rows`, in a run of B * state.num_frames
    neighbouring frames."""
    assert state.seamless, "rows divide what tensors are aligned to, so they never straddle"
    first = int(handles[0] & FRAME_MASK)
    return [
        Placement(
            pool=pool,
            shape=tuple(entry.tensor.shape),
            dtype=entry.tensor.dtype,
            start=(first + slices[0].frame) * pool.frame_bytes + slices[0].offset,
            stride=state.num_frames * pool.frame_bytes,
        )
        for slices, entry in zip(state.slices, tensors, strict=True)
    ]
