"""What a model stores, seen in a cache that it has filled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..caches import HybridCache
from ..caches.pooled_layers import PooledAttentionLayer, PooledLinearLayer
from ..errors import NotSupportedError
from ..pool.layout import LayerRows, Layout, compile_layout
from ..pool.state_tensors import StateTensor
from ..states.layer import StateCacheMixin


@dataclass(frozen=True, slots=True)
class StateShape:
    """One tensor of fixed size of a sequence: number `number` of its `kind` in a layer.

    Kinds are `conv` and `recurrent`, as cache layers number their states, and `exact`: copies of
    the most recent tokens (0) and of the first ones (1). These are like a state: of one size, and
    written anew by every step.
    """

    layer_idx: int
    kind: str
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class StoredShapes:
    """What a model stores, seen in a cache that it has filled.

    Attributes:
        replay_length: tokens after which every coded state has been rewritten; sequences whose
            lengths leave the same rest have rings that are filled alike.
        exact: (sinks, window) of layers that keep exact copies.
    """

    layout: Layout
    row_dtypes: dict[int, torch.dtype]
    states: tuple[StateShape, ...]
    replay_length: int
    exact: dict[int, tuple[int, int]]


def stored_shapes(cache: HybridCache) -> StoredShapes:
    """Look at a cache after one forward pass.

    Raises:
        NotSupportedError: a layer keeps more than rows and states of fixed size.
    """
    rows, dtypes = [], {}
    for layer in cache.layers:
        if isinstance(layer, PooledAttentionLayer):
            assert layer.row_dtype is not None
            dtypes[layer.layer_idx] = layer.row_dtype
            rows.append(
                LayerRows(
                    layer_idx=layer.layer_idx,
                    row_bytes=layer.row_width * layer.row_dtype.itemsize,
                    window=layer.sliding_window,
                )
            )
        elif not isinstance(layer, PooledLinearLayer) and getattr(layer, "keys", None) is not None:
            raise NotSupportedError(
                f"a {type(layer).__name__} keeps its content in a form that the engine does not "
                "know; use model.generate()"
            )
    coded = [layer for layer in cache.layers if isinstance(layer, StateCacheMixin)]
    tensors = cache.states.tensors()
    for layer_idx, copies in cache.exact.items():
        for number, tensor in enumerate(copies.carried()):
            if tensor.numel():
                tensors.append(StateTensor(layer_idx, "exact", number, tensor))
    states = tuple(
        StateShape(
            entry.layer_idx,
            entry.kind,
            entry.number,
            tuple(entry.tensor.shape[1:]),
            entry.tensor.dtype,
        )
        for entry in tensors
    )
    layout = compile_layout(rows, [entry.rows() for entry in tensors])
    replay_length = math.lcm(1, *(layer.layout.replay_length for layer in coded))
    exact = {idx: (copies.num_sinks, copies.window) for idx, copies in cache.exact.items()}
    return StoredShapes(layout, dtypes, states, replay_length, exact)
