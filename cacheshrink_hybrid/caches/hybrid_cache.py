"""The transformers cache over a frame pool: latents, keys and values, and recurrent states of a
batch in one arena.

The first forward pass shows what every layer stores. Before the second one the layout is compiled
and everything moves into the pool. From then on a step reserves frames for its tokens, writes their
rows, and reads the history frame by frame. Beams, repeated and selected sequences share frames, and
what they go on to write is copied first. The pool grows with the batch and goes with the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from ..errors import NotSupportedError
from ..kernels.backend import Backend, check_backend, runs_triton
from ..placement import input_device
from ..pool.frame_pool import FramePool
from ..pool.layout import LayerRows, Layout, compile_layout
from ..pool.memory import RowStep, StateStep
from ..pool.state_map import place_state
from ..pool.store import SequenceStore
from .batch_rows import BatchRows
from .batch_sequences import BatchSequences, frames_allowed
from .batch_states import BatchStates
from .dense_cache import CacheBytes, LatentCache, loose_bytes
from .pooled_layers import PooledAttentionLayer, PooledHybridLayer, PooledLinearLayer


class HybridCache(LatentCache):
    """A cache for `generate()` and hand-written loops whose content lies in a frame pool.

    History is constant: no gradient flows through what was stored by an earlier call.

    Args:
        config: of the model, converted or not; says which layers attend, and how far.
        max_bytes: most bytes that the arena may take; None for no limit.
        backend: what reads and writes the pool, see `kernels.backend`. What kernels cannot do is
            done by torch with `auto`, and refused with `triton`. The pass that begins a sequence
            finds nothing in the pool and is torch's in any case, as are recurrent states in passes
            of several tokens, and layers that are not converted.

    Attributes:
        layout, store: None until the second forward pass.
        states: the recurrent states of the batch.
    """

    slots_are_positions = False
    """Sequences of a batch may be padded on the left, and the slots of padding count."""

    def __init__(self, config, *, max_bytes: int | None = None, backend: Backend = "auto") -> None:
        # Layers of transformers say what each of ours has to be.
        kinds = DynamicCache(config=config).layers
        Cache.__init__(self, layers=[self._layer(i, kind) for i, kind in enumerate(kinds)])
        self.exact = {}
        self.max_bytes = max_bytes
        self.backend = check_backend(backend)
        self.layout: Layout | None = None
        self.store: SequenceStore | None = None
        self._recording = False
        self.states = BatchStates(self.layers)
        self._batch: BatchSequences
        self._rows: BatchRows

    def _layer(self, layer_idx: int, kind: Any):
        attends = isinstance(kind, CacheLayerMixin)
        window = kind.sliding_window if isinstance(kind, DynamicSlidingWindowLayer) else None
        if isinstance(kind, LinearAttentionCacheLayerMixin):
            if attends:
                return PooledHybridLayer(self, layer_idx, window, kind.number_of_states)
            return PooledLinearLayer(number_of_states=kind.number_of_states)
        return PooledAttentionLayer(self, layer_idx, window) if attends else kind

    # What transformers asks

    @property
    def records_past(self) -> bool:
        """Whether tokens can be taken back from recurrent states, see `_place_states`."""
        return self._recording

    @property
    def laid_out(self) -> bool:
        return self.store is not None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        self._settle()
        return super().get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        self._settle()
        return super().get_mask_sizes(query_length, layer_idx)

    def has_previous_state(self, *args, **kwargs) -> bool:
        if not self._attention_layers:  # the others ask for a length first
            self._settle()
        return super().has_previous_state(*args, **kwargs)

    def activate_past_recording(self) -> None:
        super().activate_past_recording()
        self._recording = True
        if self.laid_out:
            self._batch.keep_all()

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
            self.states.crop(tokens_to_remove)
            return
        if not self.laid_out and all(not layer.cumulative_length for layer in attention):
            return
        self.lay_out()
        length = max((layer.cumulative_length for layer in attention), default=0)
        left = length + tokens_to_remove
        if left < 0:
            raise ValueError(f"crop({tokens_to_remove}): the cache holds {length} tokens")
        if not self._batch.can_go_back(left):
            raise NotSupportedError(
                f"the cache cannot go back from {length} to {left} tokens, which have left a "
                "window; call activate_past_recording before feeding what may have to go"
            )
        self.states.crop(tokens_to_remove)
        self._batch.go_back(left)
        for layer in attention:
            layer.cumulative_length = left
        for copies in self.exact.values():
            copies.truncate(left)
        self._rows.forget()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._take(beam_idx.tolist())
        self.states.each("reorder_cache", beam_idx)
        self._select_exact(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        self._take(indices.tolist())
        self.states.each("batch_select_indices", indices)
        self._select_exact(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self._batch_size()).repeat_interleave(repeats)
        self._take(rows.tolist())
        self.states.each("batch_repeat_interleave", repeats)
        self._select_exact(rows)

    def reset(self) -> None:
        if self.laid_out:
            self._batch.free()
        for layer in self.layers:
            layer.reset()
        self.exact.clear()
        self._show()

    def memory(self) -> CacheBytes:
        """Bytes of the frames held, of exact copies, and of what is not in the pool yet."""
        seen: set[int] = set()
        loose = [
            tensor for layer in self._attention_layers if layer.first for tensor in layer.first
        ]
        loose += [tensor for copies in self.exact.values() for tensor in copies.tensors()]
        kv = loose_bytes(loose, seen)
        state = loose_bytes(self.states.loose(), seen)
        if self.store is not None:
            by_kind = self.store.statistics().frames.by_kind
            frame_bytes = self.store.pool.frame_bytes
            state += by_kind.pop("state", 0) * frame_bytes
            kv += sum(by_kind.values()) * frame_bytes
        return CacheBytes(kv=kv, state=state)

    # Layout

    @property
    def _attention_layers(self) -> list[PooledAttentionLayer]:
        return [layer for layer in self.layers if isinstance(layer, PooledAttentionLayer)]

    def _settle(self) -> None:
        """Move into the pool what a finished forward pass left outside of it."""
        layers = self._attention_layers
        if any(layer.cumulative_length != layers[0].cumulative_length for layer in layers):
            return  # within a forward pass
        if self.laid_out:
            self._place_states()
        elif not layers or layers[0].cumulative_length:
            linear = [layer for layer in self.layers if isinstance(layer, PooledLinearLayer)]
            if all(layer.has_previous_state[0] for layer in linear):
                self.lay_out()

    def lay_out(self) -> None:
        """Compile the layout from what the layers hold, and move everything into the pool."""
        if self.laid_out:
            return
        layers = [layer for layer in self._attention_layers if layer.is_initialized]
        states = self.states.tensors()
        rows = [
            LayerRows(
                layer_idx=layer.layer_idx,
                row_bytes=layer.row_width * layer.row_dtype.itemsize,
                window=layer.sliding_window,
            )
            for layer in layers
            if layer.row_dtype is not None
        ]
        layout = compile_layout(rows, [entry.rows() for entry in states])
        num_tokens = max((layer.cumulative_length for layer in layers), default=0)
        batch_size = self._batch_size()
        num_frames = batch_size * layout.frames_for(num_tokens + 1) + 1
        self.layout = layout
        device = layers[0].device if layers else states[0].tensor.device
        num_frames = frames_allowed(num_frames, layout.frame_bytes, self.max_bytes, num_frames)
        pool = FramePool(num_frames, layout.frame_bytes, device=device)
        # States lie in a run of frames of their own, so sequences have none.
        kv_layout = replace(layout, state=place_state((), layout.frame_bytes))
        self.store = SequenceStore(kv_layout, pool)
        self._batch = BatchSequences(
            self.store, max_bytes=self.max_bytes, keeps_all=self._recording
        )
        self._rows = BatchRows(layout, self.store)
        self._place_states()
        self._create(batch_size)
        # In pieces, so that windows let go of frames that nobody will read.
        windows = [c.window for c in layout.classes if c.window is not None]
        piece = num_tokens if self._recording else min(windows, default=num_tokens)
        for done in range(0, num_tokens, max(1, piece)):
            self._batch.append(min(num_tokens - done, piece))
        for layer in layers:
            layer.move_in()

    def _batch_size(self) -> int:
        for layer in self._attention_layers:
            if layer.first is not None:
                return layer.first[0].shape[0]
        if self.laid_out and self._batch.ids:
            return len(self._batch.ids)
        return next((len(entry.tensor) for entry in self.states.tensors()), 0)

    def _create(self, batch_size: int) -> None:
        self._batch.create(batch_size)
        self._show()

    def _show(self) -> None:
        """Let rows be read and written as those of the batch as it is now."""
        if self.laid_out:
            self._rows.show(self._batch.ids)

    def _place_states(self) -> None:
        """Move the state tensors into the pool, unless they are there.

        While the past is recorded (assisted decoding) they stay outside: every pass appends the
        inputs of its tokens to them, and `crop` cuts them back, so they have no fixed place. To
        move in after each crop and out at the next pass would copy all states twice per round and
        hold both copies at the peak. `memory()` counts them wherever they are.
        """
        if not self._recording:
            store = self._batch.store
            kernels = runs_triton(self.backend, store.pool.device)
            self.states.move_in(store, self._batch.grow, kernels=kernels)

    # Rows

    def write(self, layer: PooledAttentionLayer, begin: int, rows: Tensor) -> None:
        """Store rows (B, T, elements) of the tokens from `begin` on, reserving frames for them if
        this is the first layer to ask."""
        self._make_room(len(rows), begin + rows.shape[1])
        self._rows.write(layer, begin, rows)

    def _make_room(self, batch_size: int, end: int) -> None:
        """Frames for the tokens before `end` of so many sequences."""
        if not self._batch.ids:
            self._create(batch_size)
        self._batch.make_room(batch_size, end)

    def row_step(
        self, layer: PooledAttentionLayer, batch_size: int, num_new: int, first_slots: Tensor | None
    ) -> RowStep | None:
        """Take in the next `num_new` tokens of a layer by kernels, which write their rows; None if
        its history is not in the pool.

        Args:
            first_slots: first slot of each sequence that is not padding, (B,) int32, or None.
        """
        begin = layer.cumulative_length
        if not layer.is_initialized or not begin:
            return None
        self.lay_out()
        end = begin + num_new
        self._make_room(batch_size, end)
        layer.cumulative_length = end
        return self._rows.step(layer.layer_idx, begin, end, first_slots, self.backend)

    def state_step(self, layer_idx: int, num_pending: int) -> StateStep | None:
        """Take in the next token of a recurrent layer by kernels; None if its states are not all
        in the pool.

        Args:
            num_pending: inputs in its replay ring.
        """
        if self._recording or self.store is None:
            return None
        return self.states.step(self.store, layer_idx, num_pending, self.backend)

    def read(
        self, layer: PooledAttentionLayer, begin: int, end: int, *, lasting: bool = True
    ) -> Tensor:
        """Rows (B, end - begin, elements); see `BatchRows.read`."""
        return self._rows.read(layer, begin, end, lasting=lasting)

    def _take(self, sources: Sequence[int]) -> None:
        """Let the batch consist of these rows of what it was."""
        if not self._attention_layers or not self._batch_size():
            return
        self.lay_out()
        self._batch.take(sources)
        self._show()


def make_cache(
    model: PreTrainedModel, *, max_bytes: int | None = None, backend: Backend | None = None
) -> HybridCache:
    """An empty cache for `model`, converted or not: the one that `generate()` builds itself.

    Args:
        max_bytes: most bytes that the arena may take; None for no limit.
        backend: of decoding, see `HybridCache`; None for the model's `kernel_backend`.

    Raises:
        KernelUnavailableError: `triton` cannot run on the model's device.
    """
    chosen: Any = backend or getattr(model, "kernel_backend", "auto")
    runs_triton(check_backend(chosen), input_device(model))
    config = model.config.get_text_config(decoder=True)
    return HybridCache(config, max_bytes=max_bytes, backend=chosen)
