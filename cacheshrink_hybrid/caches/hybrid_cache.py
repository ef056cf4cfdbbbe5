"""The transformers cache over a frame pool: latents, keys and values, and recurrent states of a
batch in one arena.

What every layer stores is planned before the first forward pass. A step reserves frames for its
tokens, writes their rows, and reads the history frame by frame. Beams, repeated and selected
sequences share frames, and what they go on to write is copied first. The pool is made with the
first tensor that comes, grows with the batch and goes with the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ..errors import NotSupportedError
from ..families import decoder_config, model_spec
from ..kernels.backend import REFUSING, Backend, check_backend
from ..pool.frame_pool import FramePool
from ..pool.lifetime import FIRST, RECENT_HISTORY, RowSet
from ..pool.memory import (
    ExactRows,
    PoolMemory,
    RowStep,
    StateStep,
    decoding_backend,
    stepping_backend,
)
from ..pool.state_map import place_state
from ..pool.state_tensors import Placement
from ..pool.store import SequenceStore
from ..spec import ModelSpec
from .batch_rows import BatchRows
from .batch_sequences import BatchSequences, frames_allowed
from .batch_states import BatchStates, crop_states, linear_layers, states_of
from .dense_cache import CacheBytes, LatentCache, loose_bytes
from .planned_layout import PlannedLayout, layout_of, planned_layout
from .pooled_layers import PooledAttentionLayer, pooled_layers


class HybridCache(LatentCache, PoolMemory):
    """A cache for `generate()` and hand-written loops whose content lies in a frame pool.

    History is constant: no gradient flows through what was stored by an earlier call.

    While the past is recorded (assisted decoding) states stay outside of the pool: every pass
    appends the inputs of its tokens to them, and `crop` cuts them back, so they have no fixed
    place. `memory()` counts them wherever they are.

    Args:
        config: of the model; says which layers attend, and how far. Made of a config alone, the
            cache learns what the model stores with the first pass: a converted model tells it,
            and another one stores what its config says, in the type of its first tensor.
            `make_cache` knows the model.
        max_bytes: most bytes that the arena may take; None for no limit.
        backend: what reads and writes the pool, see `kernels.backend`. What kernels cannot do is
            done by torch with `auto`, and refused with `triton` and `cpu`. The pass that begins a
            sequence finds nothing in the pool and is torch's in any case, as are recurrent states
            in passes of several tokens, and layers that are not converted; on a CPU also all
            recurrent states, passes of more than 8 tokens, and what is compiled.

    Attributes:
        planned: what the model stores, and where; None until that is known.
        store: None until the first tensor comes.
    """

    slots_are_positions = False

    def __init__(
        self, config: PretrainedConfig, *, max_bytes: int | None = None, backend: Backend = "auto"
    ) -> None:
        Cache.__init__(self, layers=pooled_layers(config, self))
        self.config = config
        self.max_bytes = max_bytes
        self._wish = check_backend(backend)
        # Before there is a pool, kernels find nothing to read.
        self.backend = backend if backend in REFUSING else "torch"
        self.state_backend = "triton" if backend == "triton" else "torch"
        self.records_past = False
        self.planned: PlannedLayout | None = None
        self.store: SequenceStore | None = None
        self._batch: BatchSequences
        self._rows: BatchRows
        self._states: BatchStates

    def plan_for(self, model: PreTrainedModel) -> None:
        """Store what this model stores, unless something is stored already."""
        config: Any = decoder_config(model.config)
        self.wants_probabilities = config._attn_implementation == "eager"
        if self.store is None:
            self.planned = self._layout_of(model)

    def _layout_of(self, model: PreTrainedModel) -> PlannedLayout:
        """What of this model lies here."""
        return layout_of(model)

    def _spec(self) -> ModelSpec:
        """What a source model of the cache's config stores here."""
        return model_spec(self.config)

    # What transformers asks

    def activate_past_recording(self) -> None:
        super().activate_past_recording()
        self.records_past = True
        if self.store is not None:
            self._batch.keep_all()
            self._states.take_out()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, given as a negative count.

        Raises:
            NotSupportedError: a layer cannot go back so far.
        """
        tokens_to_remove = int(tokens_to_remove)  # transformers 5.17 counts them in a tensor
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}): give the count of tokens as a negative one"
            )
        attention = self._attention_layers
        if not attention:
            crop_states(self.layers, tokens_to_remove)
            return
        length = max(layer.cumulative_length for layer in attention)
        if not length:
            return
        left = length + tokens_to_remove
        if left < 0:
            raise ValueError(f"crop({tokens_to_remove}): the cache holds {length} tokens")
        if not self._batch.can_go_back(left):
            raise NotSupportedError(
                f"the cache cannot go back from {length} to {left} tokens, which have left a "
                "window; call activate_past_recording before feeding what may have to go (exact "
                f"tokens then go back by {RECENT_HISTORY}), or keep a copy of the cache"
            )
        crop_states(self.layers, tokens_to_remove)
        self._batch.go_back(left)
        for layer in attention:
            layer.cumulative_length = left
        self._rows.forget()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._change_batch("reorder_cache", beam_idx, beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        self._change_batch("batch_select_indices", indices, indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self._batch_size()).repeat_interleave(repeats)
        self._change_batch("batch_repeat_interleave", repeats, rows)

    def _change_batch(self, name: str, argument: Any, sources: Tensor) -> None:
        """Let the batch consist of these rows of what it was.

        Args:
            name, argument: the call that does it to recurrent layers.
        """
        if self.store is not None and self._batch.ids:
            self._batch.take(sources.tolist())
            self._rows.show(self._batch.ids)
        for layer in self.layers:
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                getattr(layer, name)(argument)

    def reset(self) -> None:
        for layer in self.layers:
            layer.reset()
        if self.store is not None:
            self._batch.free()
            self._rows.show(())

    def memory(self) -> CacheBytes:
        """Bytes of the frames held, and of states outside of the pool."""
        kv, state = 0, loose_bytes(self.loose_states(), set())
        if self.store is not None:
            by_kind = self.store.statistics().frames.by_kind
            frame_bytes = self.store.pool.frame_bytes
            state += by_kind.pop("state", 0) * frame_bytes
            kv += sum(by_kind.values()) * frame_bytes
        return CacheBytes(kv=kv, state=state)

    def loose_states(self) -> list[Tensor]:
        """State tensors that are not in the pool."""
        layers = linear_layers(self.layers).values()
        return [x for layer in layers for states in states_of(layer) for x in states.loose()]

    # The pool

    @property
    def _attention_layers(self) -> list[PooledAttentionLayer]:
        return [layer for layer in self.layers if isinstance(layer, PooledAttentionLayer)]

    def _lay_out(self, batch_size: int, num_tokens: int, first: Tensor) -> None:
        """Make the pool, with room for a first pass.

        Args:
            first: tensor that is stored.
        """
        if self.planned is None:
            # Under autocast some layers give out the narrower type and others float32.
            mixed = torch.is_autocast_enabled(first.device.type)
            dtype = torch.float32 if mixed else first.dtype
            self.planned = planned_layout(self._spec(), dtype=dtype)
        layout = self.planned.layout
        num_frames = batch_size * layout.first_frames(num_tokens) + 1
        num_frames = frames_allowed(num_frames, layout.frame_bytes, self.max_bytes, num_frames)
        # States lie in a run of frames of their own, so sequences have none.
        kv_layout = replace(layout, state=place_state((), layout.frame_bytes))
        pool = FramePool(num_frames, layout.frame_bytes, device=first.device)
        self.store = SequenceStore(kv_layout, pool)
        self._batch = BatchSequences(
            self.store, max_bytes=self.max_bytes, keeps_all=self.records_past
        )
        self._rows = BatchRows(self.planned, self.store)
        self._states = BatchStates(self.layers, self._batch, self.planned.states)
        self.backend = decoding_backend(self._wish, first.device)
        self.state_backend = stepping_backend(self._wish, first.device)

    def _comes_otherwise(self, layer_idx: int, rows: Tensor) -> bool:
        """Whether these first rows of a layer would be rounded; or are the first of all, and of a
        narrower type, as the model may have been cast since the cache was made."""
        assert self.planned is not None
        planned = self.planned.rows[RowSet(layer_idx)]
        if planned.rounds(rows):
            return True
        empty = not any(layer.cumulative_length for layer in self._attention_layers)
        # Autocast may narrow some layers only, and end within a text.
        casts = torch.is_autocast_enabled(rows.device.type)
        return empty and not casts and planned.wastes(rows)

    def _lay_out_for(self, rows: Tensor) -> None:
        """Make the pool anew for rows of this type, in the layers that have none yet: autocast,
        weights of several types, and casts bring others than the model had."""
        assert self.planned is not None and self.store is not None
        lengths = {layer.layer_idx: layer.cumulative_length for layer in self._attention_layers}
        held = {
            row_set: self._rows.held(row_set, end)
            for row_set in self.planned.rows
            if (end := lengths[row_set.layer_idx])
        }
        origins = self._rows.origins
        self._states.take_out()
        self.planned = self.planned.with_row_type(rows.dtype, {idx for idx, _ in held})
        self._lay_out(len(rows), rows.shape[1], rows)
        for row_set, (begin, stored) in held.items():
            self._make_room(len(stored), lengths[row_set.layer_idx])
            self._rows.restore(row_set, begin, stored)
        self._set_origins(origins if held else [])
        for layer in linear_layers(self.layers).values():
            for states in states_of(layer):
                states.update(dict(states))  # each to its new place

    def fill(
        self,
        planned: PlannedLayout,
        held: Mapping[RowSet, tuple[int, Tensor]],
        num_slots: int,
        origins: Sequence[int],
        device: torch.device,
    ) -> None:
        """Begin with the rows of a batch that another cache stored.

        Args:
            planned: what is stored.
            held: of each row set, as `BatchRows.held` gives them.
            num_slots: of each sequence, padding included.
            origins: first slot of each sequence that is not padding.
            device: where all lies.
        """
        self.planned = planned
        first = torch.empty(0, device=device)
        self._lay_out(len(origins), num_slots, first)
        for row_set, (begin, stored) in held.items():
            self._make_room(len(stored), num_slots)
            self._rows.restore(row_set, begin, stored)
        self._set_origins(origins if held else ())
        for layer in self._attention_layers:
            layer.cumulative_length = num_slots

    def _batch_size(self) -> int:
        if self.store is not None and self._batch.ids:
            return len(self._batch.ids)
        layers = linear_layers(self.layers).values()
        found = (x for layer in layers for states in states_of(layer) for x in states.values())
        return next((len(tensor) for tensor in found if tensor is not None), 0)

    def _make_room(self, batch_size: int, end: int) -> None:
        """Frames for the tokens before `end` of so many sequences."""
        if not self._batch.ids:
            self._batch.create(batch_size)
            self._rows.show(self._batch.ids)
        self._batch.make_room(batch_size, end)

    # What layers ask

    def write(self, layer_idx: int, begin: int, rows: Tensor) -> None:
        if self.store is None:
            self._lay_out(len(rows), rows.shape[1], rows)
        assert self.planned is not None
        row_set = RowSet(layer_idx)
        if not self.layers[layer_idx].cumulative_length and self._comes_otherwise(layer_idx, rows):
            self._lay_out_for(rows)
        self.planned.rows[row_set].check(rows)
        self._make_room(len(rows), begin + rows.shape[1])
        self._rows.write(row_set, begin, rows)

    def read(self, layer_idx: int, begin: int, end: int, *, lasting: bool = True) -> Tensor:
        return self._rows.read(RowSet(layer_idx), begin, end, lasting=lasting)

    def exact_rows(
        self, layer_idx: int, rows: Tensor, first: Tensor, *, num_sinks: int, window: int
    ) -> ExactRows:
        begin = self.layers[layer_idx].cumulative_length - rows.shape[1]
        if num_sinks:
            self._find_origins(begin, first)
        return self._rows.exact(layer_idx, begin, rows)

    def _find_origins(self, begin: int, first: Tensor | None) -> None:
        """Tell the pool where padding ends, as soon as that is known.

        Args:
            begin: slots before the new ones.
            first: first slot of each sequence that is not padding, (B,); None for no padding.
        """
        assert self.store is not None
        if begin and all(origin < begin for origin in self._rows.origins):
            return
        count = len(self._batch.ids)
        self._set_origins([0] * count if first is None else first.expand(count).tolist())

    def _set_origins(self, origins: Sequence[int]) -> None:
        assert self.store is not None
        for seq_id, origin in zip(self._batch.ids, origins, strict=True):
            self.store.set_origin(seq_id, origin)

    def row_step(
        self, layer_idx: int, batch_size: int, num_new: int, first_slots: Tensor | None
    ) -> RowStep:
        layer = self.layers[layer_idx]
        begin = layer.cumulative_length
        layer.cumulative_length = end = begin + num_new
        if not self._rows.is_ready(layer_idx, begin, end):
            self._make_room(batch_size, end)
            if RowSet(layer_idx, FIRST) in self._rows.layout.places:
                self._find_origins(begin, first_slots)
        return self._rows.step(layer_idx, begin, end, first_slots, self.backend)

    def place_state(
        self, layer_idx: int, kind: str, number: int, tensor: Tensor
    ) -> Placement | None:
        if self.records_past:
            return None
        if self.store is None:
            self._lay_out(len(tensor), 1, tensor)
        return self._states.place(layer_idx, kind, number, tensor)

    def state_step(self, layer_idx: int, num_pending: int) -> StateStep | None:
        if self.records_past or self.store is None:
            return None
        return self._states.step(layer_idx, num_pending, self.state_backend)
