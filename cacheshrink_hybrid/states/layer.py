"""The cache layer of a compressed recurrent mixer: coded state, replay ring, rollback.

A layer holds, per sequence: the last W-1 columns before the convolution; the recurrent state at the
last boundary as a row of codes; and a ring with the inputs since then. Boundaries lie every L
tokens: there the state is rewritten, so that rounding hits it once per L tokens instead of once
per token. With L = 1 there is no ring.

While the past is recorded (assisted decoding), codes and ring stay as they are and the inputs of
all new tokens are kept beside them; `crop` drops the tokens that were not accepted and commits the
rest. Nothing that was dropped has ever touched the state, so what follows is what would have
followed without the detour.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)

from ..codecs.straight_through import newest_straight_through
from ..derived_class import Derived, derived_class
from ..errors import NotSupportedError
from ..lasting import lasting_tensors
from ..precision import without_autocast
from .layout import Recurrence, StateLayout, rounded, saturated
from .scans.coded import boundaries, scan_with_cuts


class StateCacheMixin(LinearAttentionCacheLayerMixin, Derived):
    """What `state_layer` adds to a cache layer of transformers; comes first in its bases.

    `conv_states[0]` are the columns, `recurrent_states[0]` the codes, and
    `recurrent_states[1:]` the ring, so that beams, offloading and byte counts find them.

    Attributes:
        codes_every_boundary: compute several tokens at once as decoding them one by one would, with
            the state read as coded behind every boundary. Without it, a pass of several tokens
            codes the state once, at its last boundary.
    """

    name_prefix = "Coded"
    is_compileable = False
    codes_every_boundary: bool = False
    layout: StateLayout
    num_pending: int
    _owner: Callable[[], Recurrence | None]
    recorded: tuple[Tensor, ...] | None

    def start(self, layout: StateLayout) -> None:
        """Take the layer, which must be empty, over."""
        if any(self.has_previous_state.values()):
            raise NotSupportedError(
                "this cache was filled by a model with other recurrent states; give the converted "
                "model a new cache (make_cache)"
            )
        states: Any
        for states in (self.conv_states, self.recurrent_states):
            for number in list(states):
                del states[number]
            states[0] = None
        self.is_conv_states_initialized = {0: False}
        self.is_recurrent_states_initialized = {0: False}
        self.number_of_states = 1
        self.layout = layout
        self.num_pending = 0
        self.recorded = None
        self._owner = _nobody
        self._due = False
        self._no_reads: Tensor | None = None

    def belongs_to(self, owner: Recurrence) -> None:
        """Say which mixer takes recorded tokens into the state; it takes those in that are due."""
        self._owner = weakref.ref(owner)
        if self._due and self.recorded is not None:
            self._commit(self.recorded[0].shape[1])

    def __getstate__(self) -> dict[str, Any]:
        """Without the mixer, which says so again."""
        return {**self.__dict__, "_owner": _nobody}

    def conv_window(self, columns: Tensor) -> Tensor:
        """Add columns (B, C, T) and return them behind their left context, (B, C, W - 1 + T)."""
        layout = self.layout
        self._commit_if_left()
        stored = saturated(columns.detach(), layout.dtype)
        before = self.conv_states[0] if self.has_previous_state[0] else None
        if before is None:
            before = stored.new_zeros(*columns.shape[:2], layout.conv_columns)
        window = torch.cat([before, stored], dim=-1)
        kept = window if self.record_past else window[..., window.shape[-1] - layout.conv_columns :]
        self.device, self.dtype = columns.device, columns.dtype
        self.conv_states[0] = kept.clone()
        self.is_conv_states_initialized[0] = True
        self.has_previous_state[0] = True
        seen = layout.conv_columns + columns.shape[-1]
        if seen < window.shape[-1]:
            window = window[..., window.shape[-1] - seen :]
        first = window.shape[-1] - columns.shape[-1]
        return newest_straight_through(columns, window.to(columns.dtype), first, dim=-1)

    def advance(self, owner: Recurrence, inputs: Sequence[Tensor], reads: Tensor) -> Tensor:
        """Take T tokens in and return what they read, y (B, T, M, P).

        Args:
            owner: the mixer.
            inputs: of T tokens, (B, T, ...) each, the batch first.
            reads: (B, T, ...).
        """
        layout, L = self.layout, self.layout.replay_length
        self.belongs_to(owner)
        if L > 1 or self.record_past:
            inputs = tuple(rounded(x, layout.input_dtype(i)) for i, x in enumerate(inputs))
        first = not self.is_recurrent_states_initialized[0] and not self.num_pending
        if self.record_past:
            self._no_reads = reads[:, :0].detach()
            if self.recorded is not None:
                inputs = tuple(
                    torch.cat([old, new], dim=1)
                    for old, new in zip(self.recorded, inputs, strict=True)
                )
            self.recorded = tuple(x.detach() for x in inputs)
            inputs = self._behind_ring(inputs)
            cuts = [] if first or layout.lossless else boundaries(inputs, L)
            return self._scanned(owner, inputs, reads, cuts, through_codes=True)[0]
        if L > 1:
            inputs = self._behind_ring(inputs)
        cuts, through_codes = boundaries(inputs, L), self.codes_every_boundary or not first
        if not self.codes_every_boundary:
            cuts = cuts[-1:]
        y, codes = self._scanned(owner, inputs, reads, cuts, through_codes=through_codes)
        self._store(codes, inputs, cuts)
        return y

    def count_token(self) -> None:
        """One token has been taken in where the states lie, by kernels."""
        self.num_pending = (self.num_pending + 1) % self.layout.replay_length
        if not self.num_pending:
            self.is_recurrent_states_initialized[0] = True

    def resume(self, codes: Tensor, ring: Sequence[Tensor], num_tokens: int) -> None:
        """Go on behind `num_tokens` tokens from what another layer stored of them. Their columns
        are here already."""
        if num_tokens >= self.layout.replay_length:
            self.recurrent_states[0] = codes
            self.is_recurrent_states_initialized[0] = True
        for extra, inputs in enumerate(ring, start=1):
            self.recurrent_states[extra] = inputs
            self.is_recurrent_states_initialized[extra] = True
        self._count_ring(len(ring), num_tokens % self.layout.replay_length)

    def have_codes(self) -> None:
        """Where the ring has not been full yet, have codes of a state of zeros behind it: kernels
        always read some."""
        if self.recurrent_states[0] is None and self.num_pending:
            ring = self.recurrent_states[1]
            self.recurrent_states[0] = self.layout.codec.zeros(len(ring), ring.device)

    def _scanned(
        self,
        owner: Recurrence,
        inputs: Sequence[Tensor],
        reads: Tensor,
        cuts: Sequence[int],
        *,
        through_codes: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """`scan_with_cuts` from the stored state."""
        stored = self.recurrent_states[0] if self.is_recurrent_states_initialized[0] else None
        return scan_with_cuts(
            owner, self.layout.codec, stored, inputs, reads, cuts, through_codes=through_codes
        )

    def _behind_ring(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not self.num_pending:
            return tuple(inputs)
        held = [self.recurrent_states[1 + i][:, : self.num_pending] for i in range(len(inputs))]
        return tuple(
            torch.cat([old.view(*old.shape[:2], *new.shape[2:]).to(new.dtype), new], dim=1)
            for old, new in zip(held, inputs, strict=True)
        )

    def _store(self, codes: Tensor | None, inputs: Sequence[Tensor], cuts: Sequence[int]) -> None:
        """Keep codes, and in the ring the inputs behind the last cut."""
        if codes is not None:
            self.recurrent_states[0] = codes
            self.is_recurrent_states_initialized[0] = True
        if self.layout.replay_length == 1:
            return
        left = inputs[0].shape[1] - (cuts[-1] if cuts else 0)
        known = 0 if cuts else self.num_pending
        for i, x in enumerate(inputs):
            flat = x.detach().flatten(2)
            ring = self.recurrent_states.get(1 + i)
            if ring is None:
                shape = len(flat), self.layout.replay_length - 1, flat.shape[2]
                with lasting_tensors():
                    ring = flat.new_zeros(shape, dtype=self.layout.input_dtype(i))
                self.recurrent_states[1 + i] = ring
                ring = self.recurrent_states[1 + i]  # maybe copied to where it is kept
                self.is_recurrent_states_initialized[1 + i] = True
            ring[:, known:left] = flat[:, flat.shape[1] - left + known :]
        self._count_ring(len(inputs), left)

    def _count_ring(self, num_inputs: int, num_pending: int) -> None:
        """Say that there is a ring of so many kinds of inputs, of so many tokens."""
        self.number_of_states = 1 + num_inputs
        for extra in range(1, self.number_of_states):
            self.conv_states[extra] = None
            self.is_conv_states_initialized[extra] = False
            self.has_previous_state[extra] = False
        self.num_pending = num_pending

    def _commit_if_left(self) -> None:
        """Recording was switched off without a last crop: what is recorded stays."""
        if self.recorded is not None and not self.record_past:
            self._commit(self.recorded[0].shape[1])

    def _commit(self, num_tokens: int) -> None:
        """Take the first `num_tokens` recorded tokens into codes and ring, and forget the rest."""
        assert self.recorded is not None and self._no_reads is not None
        keep = self.conv_states[0].shape[-1] - self.recorded[0].shape[1] + num_tokens
        recorded = tuple(x[:, :num_tokens] for x in self.recorded)
        columns, owner = self.conv_states[0][..., :keep], self._owner()
        self._due = owner is None and num_tokens > 0  # a copy, whose mixer comes with the next pass
        if self._due:
            self.recorded, self.conv_states[0] = recorded, columns.clone()
            return
        self.recorded = None
        self.conv_states[0] = columns[..., keep - self.layout.conv_columns :].clone()
        if num_tokens == 0:
            return
        assert owner is not None
        first = not self.is_recurrent_states_initialized[0] and not self.num_pending
        inputs = self._behind_ring(recorded)
        cuts = boundaries(inputs, self.layout.replay_length)
        if first or self.layout.lossless:
            cuts = cuts[-1:]
        codes = None
        if cuts:
            _, codes = self._scanned(owner, inputs, self._no_reads, cuts, through_codes=True)
        self._store(codes, inputs, cuts)

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back, which needs their inputs to have been recorded, and a
        layer for attention, if this is one as well, that can go back."""
        if not self.record_past:
            return False
        attends = isinstance(self, CacheLayerMixin)
        return not attends or super(LinearAttentionCacheLayerMixin, self).is_croppable

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, given as a negative count, and commit the others.

        Raises:
            NotSupportedError: if more are to go than were fed since the last crop.
        """
        tokens_to_remove = int(tokens_to_remove)  # transformers 5.17 counts them in a tensor
        count = -tokens_to_remove
        recorded = 0 if self.recorded is None or self._due else self.recorded[0].shape[1]
        if count < 0 or count > recorded:
            raise NotSupportedError(
                f"crop({tokens_to_remove}) on a recurrent state that has recorded {recorded} "
                "tokens since the last crop; give a negative count of at most those, and call "
                "activate_past_recording before feeding what may have to go"
            )
        if isinstance(self, CacheLayerMixin):
            super(LinearAttentionCacheLayerMixin, self).crop(tokens_to_remove)
        if recorded:
            with without_autocast(self.conv_states[0]):
                self._commit(recorded - count)

    def _each_recorded(self, change) -> None:
        if self.recorded is not None:
            self.recorded = tuple(change(x) for x in self.recorded)

    def reset(self) -> None:
        super().reset()
        self.start_over()

    def start_over(self) -> None:
        """Forget all tokens."""
        self.has_previous_state = {0: False}
        self.start(self.layout)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._each_recorded(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences."""
        self._change_batch(lambda x: x[indices.to(x.device)])
        self._attention_part("batch_select_indices", indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        self._change_batch(lambda x: x.repeat_interleave(repeats, dim=0))
        self._attention_part("batch_repeat_interleave", repeats)

    def _change_batch(self, change) -> None:
        for states in (self.conv_states, self.recurrent_states):
            for i, tensor in list(states.items()):
                if tensor is not None:
                    states[i] = change(tensor)
        self._each_recorded(change)

    def _attention_part(self, name: str, argument) -> None:
        if isinstance(self, DynamicLayer) and self.is_initialized:
            getattr(DynamicLayer, name)(self, argument)


def _nobody() -> None:
    """In the place of a reference to a mixer."""


def state_layer(cache: Cache, layer_idx: int, layout: StateLayout) -> StateCacheMixin:
    """The layer of `cache` for a compressed mixer.

    A recurrent layer of transformers becomes one in place, whatever it holds for attention beside
    its states, so that every kind of cache works: dynamic, static, with windows, user-made.
    """
    layer: Any = cache.layers[layer_idx]
    if not isinstance(layer, StateCacheMixin):
        if not isinstance(layer, LinearAttentionCacheLayerMixin):
            raise NotSupportedError(
                f"layer {layer_idx} of this {type(cache).__name__} is a {type(layer).__name__}, "
                "which has no place for a recurrent state; use make_cache(model)"
            )
        source_class: Any = type(layer)
        layer.__class__ = derived_class(StateCacheMixin, source_class)
        layer.start(layout)
    elif layer.layout != layout:
        raise NotSupportedError(
            "this cache belongs to a model with another state plan; make a new one (make_cache)"
        )
    layer.codes_every_boundary = getattr(cache, "codes_every_boundary", False)
    return layer
