"""Layers of a transformers cache whose content lies in a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from ..codecs.straight_through import newest_straight_through
from ..errors import NotSupportedError
from ..families import layers_read_by_others
from ..pool.memory import PoolMemory, RowMemory, StateMemory
from ..pool.state_tensors import PooledStates


class PooledAttentionLayer(CacheLayerMixin):
    """Keys and values of one attention layer, one row per token; a latent is a key of one head with
    an empty value.

    Args:
        memory: the cache that this layer belongs to.
        layer_idx: its place there.
        sliding_window: tokens that a query sees, itself included; None for all.
        is_read_by_others: what an update gives out is read by later layers as well.
    """

    is_croppable = True
    supports_early_init = False
    is_compileable = False

    def __init__(
        self,
        memory: RowMemory,
        layer_idx: int,
        sliding_window: int | None,
        *,
        is_read_by_others: bool = False,
    ) -> None:
        self.memory = memory
        self.is_read_by_others = is_read_by_others
        self.layer_idx = layer_idx
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None
        self.heads = self.key_dim = self.value_dim = 0
        self.cumulative_length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.heads, self.key_dim = key_states.shape[1], key_states.shape[3]
        self.value_dim = value_states.shape[3]

    @property
    def is_initialized(self) -> bool:
        return self.heads > 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new tokens and return all that their queries may see, in tensors that hold
        until the next layer's update; with gradients enabled, or where other layers read them, in
        tensors of their own.

        Args:
            key_states: (B, J, T, D).
            value_states: (B, J, T, Dv); Dv may be 0.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, count = self.cumulative_length, key_states.shape[2]
        given = (*key_states.shape[1::2], value_states.shape[3])
        if given != (self.heads, self.key_dim, self.value_dim):
            raise NotSupportedError(
                f"layer {self.layer_idx} stores {self.heads} heads of {self.key_dim} + "
                f"{self.value_dim} elements; got (heads, key, value) {given}. The cache was filled "
                "by another model; make a new one"
            )
        rows = self._rows(key_states.detach(), value_states.detach())
        self.memory.write(self.layer_idx, begin, rows)
        self.cumulative_length = begin + count
        if begin == 0:
            return key_states, value_states
        first = self.first_seen(begin)
        keys, values = self._tensors(first, begin + count, lasting=self.is_read_by_others)
        if key_states.is_floating_point():
            # Autocast may compute in a narrower type than that of the rows.
            keys, values = keys.to(key_states.dtype), values.to(value_states.dtype)
            keys = newest_straight_through(key_states, keys, begin - first, dim=2)
            values = newest_straight_through(value_states, values, begin - first, dim=2)
        return keys, values

    @property
    def keys(self) -> Tensor | None:
        """Keys that the next query may see, (B, J, S, D)."""
        return self._visible(0)

    @property
    def values(self) -> Tensor | None:
        return self._visible(1)

    def _visible(self, which: int) -> Tensor | None:
        if not self.is_initialized:
            return None
        end = self.cumulative_length
        return self._tensors(self.first_seen(end), end)[which]

    def first_seen(self, position: int) -> int:
        """First position that the query at `position` sees."""
        if self.sliding_window is None:
            return 0
        return max(0, position + 1 - self.sliding_window)

    def _rows(self, keys: Tensor, values: Tensor) -> Tensor:
        """(B, T, row elements): the keys of all heads, then the values."""
        rows = keys.transpose(1, 2).flatten(2)
        if self.value_dim:
            rows = torch.cat([rows, values.transpose(1, 2).flatten(2)], dim=-1)
        return rows

    def _tensors(self, begin: int, end: int, *, lasting: bool = True) -> tuple[Tensor, Tensor]:
        rows = self.memory.read(self.layer_idx, begin, end, lasting=lasting)
        width = self.heads * self.key_dim
        keys = rows[..., :width].unflatten(-1, (self.heads, self.key_dim))
        values = rows[..., width:].unflatten(-1, (self.heads, self.value_dim))
        return keys.transpose(1, 2), values.transpose(1, 2)

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        first = self.first_seen(self.cumulative_length)
        return self.cumulative_length - first + query_length, first

    def get_max_length(self) -> int:
        return -1 if self.sliding_window is None else self.sliding_window

    # The cache does these for all layers at once.

    def reset(self) -> None:
        self.cumulative_length = 0

    def crop(self, tokens_to_remove: int) -> None: ...

    def reorder_cache(self, beam_idx: Tensor) -> None: ...

    def batch_repeat_interleave(self, repeats: int) -> None: ...

    def batch_select_indices(self, indices: Tensor) -> None: ...

    def offload(self) -> None:
        raise NotSupportedError("a pooled cache is not offloaded layer by layer; use DynamicCache")

    prefetch = offload


class PooledLinearLayer(LinearAttentionLayer):
    """States of one recurrent layer, in the pool wherever its memory has a place for them.

    Args:
        memory: the cache that this layer belongs to.
        layer_idx: its place there.
    """

    is_compileable = False

    def __init__(self, memory: StateMemory, layer_idx: int, number_of_states: int = 1) -> None:
        self.memory = memory
        self.layer_idx = layer_idx
        LinearAttentionLayer.__init__(self, number_of_states)

    @property
    def conv_states(self) -> PooledStates:
        return self._conv

    @conv_states.setter
    def conv_states(self, values: Mapping[int, Tensor | None]) -> None:
        self._conv = self._states("conv", values)

    @property
    def recurrent_states(self) -> PooledStates:
        return self._recurrent

    @recurrent_states.setter
    def recurrent_states(self, values: Mapping[int, Tensor | None]) -> None:
        self._recurrent = self._states("recurrent", values)

    def _states(self, kind: str, values: Mapping[int, Tensor | None]) -> PooledStates:
        return PooledStates(values, partial(self.memory.place_state, self.layer_idx, kind))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda tensor: tensor[indices.to(tensor.device)])

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        for states in (self.conv_states, self.recurrent_states):
            for number in list(states):
                tensor = states[number]
                if tensor is not None:
                    states[number] = change(tensor)


class PooledHybridLayer(PooledLinearLayer, PooledAttentionLayer):
    """A layer with states and with keys and values."""

    memory: PoolMemory

    def __init__(
        self,
        memory: PoolMemory,
        layer_idx: int,
        sliding_window: int | None,
        number_of_states: int = 1,
    ) -> None:
        PooledLinearLayer.__init__(self, memory, layer_idx, number_of_states)
        PooledAttentionLayer.__init__(self, memory, layer_idx, sliding_window)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        part: Any = PooledAttentionLayer if args else PooledLinearLayer
        part.lazy_initialization(self, *args, **kwargs)

    def reset(self) -> None:
        PooledLinearLayer.reset(self)
        PooledAttentionLayer.reset(self)

    def get_max_length(self) -> int:
        return PooledAttentionLayer.get_max_length(self)


def pooled_layers(config: PretrainedConfig, memory: PoolMemory) -> list[Any]:
    """A layer of `memory` for each layer of a model; those that keep nothing are transformers'."""
    layers: list[Any] = []
    shared = layers_read_by_others(config)
    # Layers of transformers say what each of ours has to be.
    for layer_idx, kind in enumerate(DynamicCache(config=config).layers):
        attends = isinstance(kind, CacheLayerMixin)
        window = kind.sliding_window if isinstance(kind, DynamicSlidingWindowLayer) else None
        if isinstance(kind, LinearAttentionCacheLayerMixin):
            number = kind.number_of_states
            layers.append(
                PooledHybridLayer(memory, layer_idx, window, number)
                if attends
                else PooledLinearLayer(memory, layer_idx, number)
            )
        else:
            layers.append(
                PooledAttentionLayer(
                    memory, layer_idx, window, is_read_by_others=layer_idx in shared
                )
                if attends
                else kind
            )
    return layers
