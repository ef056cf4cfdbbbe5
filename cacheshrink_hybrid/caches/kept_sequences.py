"""What a store holds of single sequences, copied out, and put together as the cache of a batch.

A store has every sequence in the slots of its positions. In a batch for `generate()` they are
padded on the left to one length, so that the last token of each lies in the last slot.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..placement import input_device
from ..pool.arena import read_first, read_rows, read_state, row_view
from ..pool.lifetime import RowSet
from ..pool.store import SequenceStore
from ..states.layer import StateCacheMixin
from ..states.mixers.installation import take_over_layers
from .batch_states import linear_layers
from .hybrid_cache import HybridCache
from .making import make_cache
from .planned_layout import PlannedLayout
from .pooled_layers import PooledLinearLayer


@dataclass(frozen=True, eq=False, slots=True)
class KeptSequence:
    """One sequence, in tensors of its own.

    Attributes:
        num_tokens: that it has.
        rows: by row set, position of the first row, and the rows (n, elements) from there on.
        states: in the order of the planned ones, (...) each; none without tokens.
    """

    num_tokens: int
    rows: Mapping[RowSet, tuple[int, Tensor]]
    states: Sequence[Tensor]


def copy_out(store: SequenceStore, planned: PlannedLayout, seq_id: Hashable) -> KeptSequence:
    """A copy of what the next token of a sequence sees, whose last step is committed."""
    pool, layout, num_tokens = store.pool, planned.layout, store.num_tokens(seq_id)
    tables = [store.frame_table([seq_id], i).long() for i in range(len(layout.classes))]
    rows: dict[RowSet, tuple[int, Tensor]] = {}
    for row_set, shape in planned.rows.items():
        number, place = layout.places[row_set]
        lifetime = layout.classes[number]
        view = row_view(pool, lifetime, place, shape.dtype)
        if lifetime.limit is not None:
            count = lifetime.num_rows(num_tokens)
            rows[row_set] = 0, read_first(view, tables[number], count)[0]
        else:
            begin = max(store.first_position(seq_id, number), lifetime.first_needed(num_tokens + 1))
            rows[row_set] = begin, read_rows(view, tables[number][0], begin, num_tokens)
    states: list[Tensor] = []
    if num_tokens and planned.states:
        frames = store.state_tables([seq_id])[0].long()
        for number, state in enumerate(planned.states):
            data = read_state(pool, layout.state, frames, number).flatten()
            states.append(data.view(state.dtype).view(state.shape))
    return KeptSequence(num_tokens, rows, states)


def line_up(planned: PlannedLayout, lengths: Sequence[int]) -> bool:
    """Whether sequences of these lengths can be one batch: their rings are filled alike."""
    return len({length % planned.replay_length for length in lengths}) == 1


def cache_of(
    model: PreTrainedModel,
    planned: PlannedLayout,
    sequences: Sequence[KeptSequence],
    num_slots: int,
) -> HybridCache:
    """A cache for `generate()` of `model` that holds these sequences, which line up and are not all
    empty, each padded to `num_slots`."""
    cache = make_cache(model)
    device = input_device(model)
    held = {row_set: _padded(planned, row_set, sequences, num_slots) for row_set in planned.rows}
    origins = [num_slots - sequence.num_tokens for sequence in sequences]
    cache.fill(planned, held, num_slots, origins, device)
    take_over_layers(model, cache)
    longest = max(sequence.num_tokens for sequence in sequences)
    for layer_idx, layer in linear_layers(cache.layers).items():
        states = _states_of(planned, layer_idx, sequences, device)
        if states:
            _fill_states(layer, states, longest)
    return cache


def _padded(
    planned: PlannedLayout, row_set: RowSet, sequences: Sequence[KeptSequence], num_slots: int
) -> tuple[int, Tensor]:
    """Rows (B, n, elements) of a batch from some slot on, zeros where there is padding; of first
    tokens, counted from where padding ends."""
    lifetime = planned.layout.classes[planned.layout.places[row_set][0]]
    begin = 0 if lifetime.limit is not None else lifetime.first_needed(num_slots + 1)
    count = num_slots - begin if lifetime.limit is None else min(lifetime.limit, num_slots)
    some = sequences[0].rows[row_set][1]
    rows = some.new_zeros(len(sequences), count, some.shape[1])
    for row, sequence in zip(rows, sequences, strict=True):
        start, own = sequence.rows[row_set]
        at = 0 if lifetime.limit is not None else start + num_slots - sequence.num_tokens - begin
        row[at : at + len(own)] = own
    return begin, rows


def _states_of(
    planned: PlannedLayout, layer_idx: int, sequences: Sequence[KeptSequence], device: torch.device
) -> dict[tuple[str, int], Tensor]:
    """States (B, ...) of a layer by kind and number, zeros where there are no tokens."""
    found = {}
    for at, shape in enumerate(planned.states):
        if shape.layer_idx == layer_idx:
            zeros = torch.zeros(shape.shape, dtype=shape.dtype, device=device)
            each = [sequence.states[at] if sequence.states else zeros for sequence in sequences]
            found[shape.kind, shape.number] = torch.stack(each)
    return found


def _fill_states(
    layer: PooledLinearLayer, states: Mapping[tuple[str, int], Tensor], num_tokens: int
) -> None:
    """Put states behind so many tokens in a layer, and say there that it has them."""
    coded = [states[key] for key in sorted(states) if key[0] == "recurrent"]
    for (kind, number), tensor in states.items():
        layer.device = tensor.device
        if kind == "conv":
            layer.dtype = tensor.dtype
            layer.conv_states[number] = tensor
            layer.conv_kernel_size[number] = tensor.shape[-1]
            layer.is_conv_states_initialized[number] = True
            layer.has_previous_state[number] = True
        elif not isinstance(layer, StateCacheMixin):
            layer.recurrent_states[number] = tensor
            layer.is_recurrent_states_initialized[number] = True
    if isinstance(layer, StateCacheMixin):
        layer.resume(coded[0], coded[1:], num_tokens)
