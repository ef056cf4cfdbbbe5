"""Recurrent states of a batch, in one run of frames of a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ..errors import CacheFullError
from ..kernels.backend import Backend
from ..kernels.states.pages import StatePlace
from ..pool.frame_ledger import FRAME_MASK
from ..pool.memory import StateStep
from ..pool.state_map import place_state
from ..pool.state_tensors import PooledStates, StateTensor, placements
from ..pool.store import SequenceStore
from ..states.layer import StateCacheMixin
from .pooled_layers import PooledLinearLayer

RUN = "states"


class BatchStates:
    """Finds the state tensors of a cache's layers, moves them into the pool, and gives out where
    they lie.

    Args:
        layers: of the cache.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers
        self._placed = False
        self._frames: Tensor | None = None
        self._places: dict[int, dict[tuple[str, int], StatePlace]] = {}
        self._pending: dict[int, Tensor] = {}

    def loose(self) -> list[Tensor]:
        """State tensors that are not in the pool."""
        return [tensor for states in self._states() for tensor in states.loose()]

    def tensors(self) -> list[StateTensor]:
        """All state tensors of the batch, in the order in which the layout has them."""
        return [
            StateTensor(layer_idx, kind, number, tensor)
            for layer_idx, layer in enumerate(self.layers)
            if isinstance(layer, PooledLinearLayer)
            for kind, states in (
                ("conv", layer.conv_states),
                ("recurrent", layer.recurrent_states),
            )
            for number, tensor in states.items()
            if tensor is not None and tensor.numel()
        ]

    def move_in(self, store: SequenceStore, grow: Callable[[int], None], *, kernels: bool) -> None:
        """Move the state tensors into one run of frames, unless they are there.

        Args:
            store: whose pool has the frames.
            grow: adds so many frames to it.
            kernels: whether kernels may step the states from now on.
        """
        if not self.loose():
            return
        for layer in self.layers:
            if kernels and isinstance(layer, StateCacheMixin):
                layer.have_codes()
        for states in self._states():
            states.take_out()
        if self._placed:
            store.drop_run(RUN)
        tensors = self.tensors()
        self._placed = bool(tensors)
        if not tensors:
            return
        state = place_state([entry.rows() for entry in tensors], store.layout.frame_bytes)
        count = len(tensors[0].tensor) * state.num_frames
        try:
            handles = store.hold_run(RUN, count)
        except CacheFullError:
            grow(count)
            handles = store.hold_run(RUN, count)
        found = placements(store.pool, state, handles, tensors)
        self._frames = store.pool.index(handles).int().view(-1, state.num_frames)
        self._places = {}
        origin = int(handles[0] & FRAME_MASK) * store.pool.frame_bytes
        for entry, placement in zip(tensors, found, strict=True):
            layer = self.layers[entry.layer_idx]
            states = layer.conv_states if entry.kind == "conv" else layer.recurrent_states
            states.place(entry.number, placement)
            place = StatePlace.packed(store.pool.frame_bytes, first_byte=placement.start - origin)
            self._places.setdefault(entry.layer_idx, {})[entry.kind, entry.number] = place

    def step(
        self, store: SequenceStore, layer_idx: int, num_pending: int, backend: Backend
    ) -> StateStep | None:
        """Where the next token of a layer goes; None if its states are not all in the pool.

        Args:
            num_pending: inputs in the layer's replay ring.
        """
        places, frames = self._places.get(layer_idx), self._frames
        if places is None or frames is None:
            return None
        layer = self.layers[layer_idx]
        if any(states.loose() for states in (layer.conv_states, layer.recurrent_states)):
            return None
        if num_pending not in self._pending or len(self._pending[num_pending]) != len(frames):
            self._pending[num_pending] = torch.full(
                (len(frames),), num_pending, dtype=torch.int32, device=frames.device
            )
        return StateStep(
            arena=store.pool.arena,
            frame_bytes=store.pool.frame_bytes,
            places=places,
            read_table=frames,
            write_table=frames,
            num_pending=self._pending[num_pending],
            backend=backend,
        )

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, given as a negative count."""
        for layer in self.layers:
            # transformers 5.17 gives layers without any memory one that stays empty.
            if isinstance(layer, LinearAttentionCacheLayerMixin) and any(
                layer.has_previous_state.values()
            ):
                layer.crop(tokens_to_remove)

    def each(self, name: str, argument: Any) -> None:
        """Call this method of every recurrent layer."""
        for layer in self.layers:
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                getattr(layer, name)(argument)

    def _states(self) -> list[PooledStates]:
        return [
            states
            for layer in self.layers
            if isinstance(layer, PooledLinearLayer)
            for states in (layer.conv_states, layer.recurrent_states)
        ]
