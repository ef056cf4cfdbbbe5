"""One step of attention over rows in the pool, by functions compiled for the CPU.

All that lies between a layer's projections is one call of `attend_rows`; with several threads one
for each, and one before and after them. What layers of a step have in common is worked out once, in
the notes of the step.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.latents.cpu.reading import LEAST_SLOTS
from ...kernels.latents.cpu.row_view import (
    NO_ANGLES,
    NO_BIAS,
    NO_CHANNELS,
    NO_MEAN,
    NO_NORM,
    NO_ROWS,
    NO_SINKS,
    NO_WEIGHT,
    RowForm,
    StepRoom,
    StepRows,
    StepWeights,
    coding_tables,
    exact_form,
    floats,
    read_form,
    row_tables,
)
from ...kernels.latents.cpu.step import BEGIN, END, READ, WHOLE, attend_rows
from ...kernels.workers import in_parallel, num_shares
from ...pool.lifetime import FIRST, KINDS, RECENT, TOKENS
from ...pool.memory import RowStep
from .head import LatentHead
from .kernel_view import latent_read, num_pairs, rms_gains, rotated_mean, row_layout
from .pool_read import coded_slots, rows_in_pool
from .rotated_keys import BLOCK_SLOTS


def attend_on_cpu(
    head: LatentHead, query: Tensor, latent: Tensor, channels: Tensor | None, step: RowStep
) -> Tensor:
    """Append the rows of T new tokens, and read all rows; heads' outputs (B, T, H*D).

    Args:
        query: before rotation, (B, H, T, D).
        latent: as it is stored, (B, T, R).
        channels: of the tokens' exact rows, (B, T, 2*J*D); None where no token stays exact.
    """
    query = query.transpose(1, 2)
    B, T, H, D = query.shape
    first_new, longest = step.noted("slots", lambda: _slots(step, T))
    count = num_shares(longest - head.plan.exact_window, LEAST_SLOTS)
    weights = _weights(head, step, latent)
    width = weights.absorbing.shape[2] + (0 if head.absorbs else D)
    room = StepRoom(
        turned=np.empty((B, T, H, D), np.float32),
        asked=np.empty((B, T, H, width), np.float32),
        offset=np.zeros((B, T, H), np.float32),
        mixed=np.empty((count, B, T, H, head.plan.value_rank), np.float32),
        means=np.empty((2, B, T, H, D), np.float32),
        sums=np.empty((count + 2, B, T, H), np.float32),
    )
    output = torch.empty(B, T, H, D)
    arguments = (
        (
            floats(query),
            first_new,
            floats(latent.flatten(0, 1)),
            NO_CHANNELS if channels is None else floats(channels.flatten(0, 1)),
        ),
        step.arena.numpy(),
        tuple(_rows(head, step, kind, latent) for kind in KINDS),
        weights,
        (coding_tables(), row_tables()),
        room,
        output.numpy(),
    )
    if count == 1:
        attend_rows(WHOLE, 0, *arguments)
    else:
        attend_rows(BEGIN, 0, *arguments)
        in_parallel([partial(attend_rows, READ, share, *arguments) for share in range(count)])
        attend_rows(END, 0, *arguments)
    return output.to(query.dtype).flatten(2)


def _slots(step: RowStep, num_new: int) -> tuple[NDArray, int]:
    """Slot of each sequence's first new token, (B,) int64, below 0 for padding; and the slots of
    the longest one."""
    lens = step.context_lens.numpy().astype(np.int64)
    return lens - num_new, int(lens.max())


def _rows(head: LatentHead, step: RowStep, kind: str, latent: Tensor) -> StepRows:
    """The rows of a kind that a layer writes, of latents (B, T, R), and reads in this step."""
    place = step.places.get(kind)
    if place is None:
        return NO_ROWS
    plan, lifetime, offset = head.plan, place.lifetime, place.lifetime.offsets[place.place]
    form = head.noted(
        (kind, place.dtype, step.frame_bytes, lifetime.tokens_per_frame, offset),
        lambda: _form(head, step, kind, latent),
    )
    slots, frame_table, sequences = step.noted(
        (kind, plan.exact_window, plan.exact_sinks, place.frame_table, step.first_slots),
        lambda: (
            place.slot_mapping.numpy(),
            place.frame_table.numpy(),
            _sequences(head, step, kind, latent.shape[1]),
        ),
    )
    return StepRows(slots, frame_table, sequences, form)


def _sequences(head: LatentHead, step: RowStep, kind: str, num_new: int) -> NDArray:
    """Slots that new tokens read of a kind of rows, as `read_block` takes them: lengths, new
    tokens, first slots, and the slot of the angles that slot 0 is rotated by, (4, B) int32."""
    found = np.zeros((4, len(step.context_lens)), np.int32)
    lens, first = step.context_lens, step.first_slots
    if kind == TOKENS:
        lens, first = coded_slots(head, lens, first)
    found[0], found[1], found[2] = lens, num_new, 0 if first is None else first
    if kind == FIRST:
        # Counted from the first token, and read by queries as if they stood before their window.
        found[0] -= found[2] + head.plan.exact_window
        found[3], found[2] = found[2], 0
    return found


def _form(head: LatentHead, step: RowStep, kind: str, latent: Tensor) -> RowForm:
    """How rows of a kind are written and read."""
    place, exact = step.places[kind], head.exact_codec
    layout = row_layout(head, place.dtype) if kind == TOKENS or exact is None else exact.layout
    rows = rows_in_pool(layout, step.arena, step.frame_bytes, place.lifetime, place.place)
    if kind == TOKENS:
        return read_form(latent_read(head, 1, latent), rows)
    return exact_form(
        rows,
        head.num_key_value_heads,
        head.head_dim,
        scale=head.scale,
        softcap=head.softcap,
        window=head.plan.exact_window if kind == RECENT else None,
        limit=head.plan.exact_sinks if kind == FIRST else None,
    )


def _weights(head: LatentHead, step: RowStep, latent: Tensor) -> StepWeights:
    """What a layer computes with, as its weights are now."""
    heads = head.num_key_value_heads, head.head_dim
    key_up, key_bias = (floats(x) for x in head.key_up.matrix(latent))
    value_up, value_bias = (floats(x) for x in head.value_up.matrix(latent))
    key_bias = key_bias.reshape(heads)
    cos, sin = _angles(head, step, latent)
    norm = NO_NORM
    if head.rebuilds_keys and head.key_norm is not None:
        norm = floats(rms_gains(head, latent.device)[0])
    return StepWeights(
        absorbing=NO_WEIGHT if head.rebuilds_keys else key_up,
        offset=key_bias if head.absorbs else NO_BIAS,
        rebuilding=key_up if head.rebuilds_keys else NO_WEIGHT,
        bias=key_bias if head.rebuilds_keys else NO_BIAS,
        norm=norm,
        cos=cos,
        sin=sin,
        mean=_mean(head, step, latent) if head.stores_rotated else NO_MEAN,
        no_bias=head.noted("no bias", lambda: np.zeros(heads, np.float32)),
        value_up=(value_up, value_bias.reshape(heads)),
        costs=NO_NORM if head.costs is None else floats(head.costs),
        sinks=NO_SINKS if head.sinks is None else floats(head.sinks),
    )


def _angles(head: LatentHead, step: RowStep, like: Tensor) -> tuple[NDArray, NDArray]:
    """cos and sin by slot."""
    if head.rotary is None:
        return NO_ANGLES, NO_ANGLES
    rotary, pairs = head.rotary, num_pairs(head)

    def find() -> tuple[NDArray, NDArray]:
        cos, sin = rotary.pair_angles(step.num_slots, pairs, like)
        return floats(cos), floats(sin)

    return step.noted((rotary, pairs, like.dtype), find)


def _mean(head: LatentHead, step: RowStep, like: Tensor) -> tuple[NDArray, NDArray, NDArray]:
    """`RotatedMean` in arrays; its table is made anew when the bias of the keys is another one."""
    rotary, pairs = head.rotary, num_pairs(head)
    assert rotary is not None

    def find() -> tuple[NDArray, NDArray]:
        cos, sin = rotary.block_angles(step.num_slots, pairs, BLOCK_SLOTS, like)
        return floats(cos), floats(sin)

    cos, sin = step.noted((rotary, pairs, BLOCK_SLOTS), find)
    kept: dict[bytes, NDArray] = head.noted(("mean", like.dtype), dict)
    bias = floats(head.key_up.offset(like)).tobytes()
    table = kept.get(bias)
    if table is None:
        kept.clear()
        table = kept[bias] = floats(rotated_mean(head, like))
    return table, cos, sin
