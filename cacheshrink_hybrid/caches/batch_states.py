"""Recurrent states of a batch, in one run of frames of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ..errors import CacheFullError
from ..kernels.backend import Backend
from ..kernels.states.pages import StatePlace
from ..pool.frame_ledger import FRAME_MASK
from ..pool.memory import StateStep
from ..pool.state_map import StateMap, place_state
from ..pool.state_tensors import Placement, PooledStates, StateShape, first_byte
from ..states.layer import StateCacheMixin
from .batch_sequences import BatchSequences
from .pooled_layers import PooledLinearLayer

RUN = "states"


class BatchStates:
    """Where the state tensors of a cache's layers lie: in one run of frames, as many sequences in
    it as the batch has, or outside of the pool where they are not as was planned.

    Args:
        layers: of the cache.
        sequences: of the batch, in a pool.
        shapes: of the states, as planned.
    """

    def __init__(
        self, layers: Sequence[Any], sequences: BatchSequences, shapes: Sequence[StateShape]
    ) -> None:
        self._layers = linear_layers(layers)
        self._sequences = sequences
        self._pool = sequences.store.pool
        self._numbers = {
            (shape.layer_idx, shape.kind, shape.number): i for i, shape in enumerate(shapes)
        }
        self._shapes = shapes
        rows = [shape.rows() for shape in shapes]
        self._map: StateMap = place_state(rows, self._pool.frame_bytes)
        self._places: dict[int, dict[tuple[str, int], StatePlace]] = {}
        for (layer_idx, kind, number), i in self._numbers.items():
            place = StatePlace.packed(self._pool.frame_bytes, first_byte=self._first_byte(i))
            self._places.setdefault(layer_idx, {})[kind, number] = place
        self._frames: Tensor | None = None
        self._pending: dict[int, Tensor] = {}

    def place(self, layer_idx: int, kind: str, number: int, tensor: Tensor) -> Placement | None:
        """Where a tensor (B, ...) is to lie; None if it is not as was planned.

        Raises:
            CacheFullError: the frames would take more than the cache may have.
        """
        i = self._numbers.get((layer_idx, kind, number))
        if i is None or not self._shapes[i].fits(tensor):
            return None
        if self._frames is None or len(self._frames) != len(tensor):
            self.take_out()
            self._hold(len(tensor))
        assert self._frames is not None
        return Placement(
            pool=self._pool,
            shape=self._shapes[i],
            batch_size=len(tensor),
            start=int(self._frames[0, 0]) * self._pool.frame_bytes + self._first_byte(i),
            stride=self._map.num_frames * self._pool.frame_bytes,
        )

    def take_out(self) -> None:
        """Give every state memory of its own, and the frames back."""
        if self._frames is None:
            return
        for layer in self._layers.values():
            for states in states_of(layer):
                states.take_out()
        self._sequences.store.drop_run(RUN)
        self._frames = None

    def step(self, layer_idx: int, num_pending: int, backend: Backend) -> StateStep | None:
        """Where the next token of a layer goes; None if its states are not all in the pool.

        Args:
            num_pending: inputs in the layer's replay ring.
        """
        layer, frames = self._layers.get(layer_idx), self._frames
        if layer is None or frames is None or not layer.has_previous_state[0]:
            return None
        if isinstance(layer, StateCacheMixin):
            layer.have_codes()
        if any(states.loose() for states in states_of(layer)):
            return None
        if num_pending not in self._pending or len(self._pending[num_pending]) != len(frames):
            self._pending[num_pending] = torch.full(
                (len(frames),), num_pending, dtype=torch.int32, device=frames.device
            )
        return StateStep(
            arena=self._pool.arena,
            frame_bytes=self._pool.frame_bytes,
            places=self._places[layer_idx],
            read_table=frames,
            write_table=frames,
            num_pending=self._pending[num_pending],
            backend=backend,
        )

    def _hold(self, batch_size: int) -> None:
        """Take a run of frames for so many sequences."""
        store, count = self._sequences.store, batch_size * self._map.num_frames
        try:
            handles = store.hold_run(RUN, count)
        except CacheFullError:
            self._sequences.grow(count)
            handles = store.hold_run(RUN, count)
        self._frames = self._pool.index(handles & FRAME_MASK).int().view(batch_size, -1)

    def _first_byte(self, number: int) -> int:
        return first_byte(self._map, number, self._pool.frame_bytes)


def linear_layers(layers: Sequence[Any]) -> dict[int, PooledLinearLayer]:
    """Those of a cache's layers that have states, by number."""
    return {i: layer for i, layer in enumerate(layers) if isinstance(layer, PooledLinearLayer)}


def states_of(layer: PooledLinearLayer) -> tuple[PooledStates, PooledStates]:
    return layer.conv_states, layer.recurrent_states


def crop_states(layers: Sequence[Any], tokens_to_remove: int) -> None:
    """Take back the last tokens of recurrent layers, given as a negative count."""
    for layer in layers:
        # transformers 5.17 gives layers without any memory one that stays empty.
        if isinstance(layer, LinearAttentionCacheLayerMixin) and any(
            layer.has_previous_state.values()
        ):
            layer.crop(tokens_to_remove)
