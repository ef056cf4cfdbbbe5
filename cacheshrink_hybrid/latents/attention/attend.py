"""One step of attention: new latents are stored, and the new queries read the context.

By torch the context comes out of the cache as a tensor, by kernels it is read where it lies
(`context`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...codecs.straight_through import newest_straight_through
from ...kernels.backend import implementation_on
from ...pool.lifetime import TOKENS
from ...pool.memory import RowStep
from ..exact_tokens import ExactView
from .cached_layer import CachedLayer, Slots
from .context import DenseContext, PoolContext
from .dense_read import MAX_DECODE_TOKENS, Attend, reads_directly
from .exact_read import angles_at
from .head import LatentHead
from .kernel_view import latent_read, row_layout
from .left_padding import first_visible_slots
from .pool_read import append_exact, append_to_pool, rows_in_pool
from .rotary_key import stored_at
from .rotation import Angles


def attend_by_torch(
    head: LatentHead,
    query: Tensor,
    latent: Tensor | None,
    key_value: Tensor | None,
    layer: CachedLayer,
    position_embeddings: Angles | None,
    position_ids: Tensor | None,
    mask: Any,
    attend: Attend,
    *,
    training: bool,
) -> tuple[Tensor, Tensor | None, DenseContext]:
    """Heads' outputs (B, T, H*D) over what a cache gives out with the new latents, probabilities
    (B, H, T, S) where they are formed, and what was read.

    Args:
        query: before rotation, (B, H, T, D).
        latent: of the new tokens, (B, T, R); None where keys are stored rotated.
        key_value: theirs as the source has them, (B, T, 2*J*D), where some tokens stay exact or
            keys are stored rotated.
        layer: that they are appended to.
        position_embeddings, position_ids: angles and positions of the new tokens.
        mask: as `attend` takes it.
        attend: attention function for many queries.
        training: keys and values are expanded, which dropout and gradients go through.
    """
    slots = layer.slots(query.shape[2])
    query_angles, key_angles = _angles(head, query, position_embeddings, position_ids, layer, slots)
    latent = stored_at(head, _latent(head, latent, key_value, slots.first_query), query_angles)
    channels = rows = None
    if key_value is not None and head.exact_codec is not None:
        channels = head.exact_channels(key_value)
        rows = head.exact_rows(channels)
    stored, held = layer.append(head.encoded(latent, layer.coding_on(latent.device)), rows)
    decoded = head.decoded(stored, query.dtype)
    if head.codec is not None:
        first_new = slots.first_query - slots.first_key
        decoded = newest_straight_through(latent, decoded, first_new, dim=1)
    context = DenseContext(
        latent=decoded,
        slots=slots,
        num_new=query.shape[2],
        query_angles=query_angles,
        key_angles=key_angles,
        is_static=layer.is_static,
    )
    mask = context.mask(head, query, mask)
    if channels is not None and rows is not None:
        first = first_visible_slots(mask, decoded.shape[1], query.device) + slots.first_key
        exact = layer.exact_view(head, channels, rows, first, slots, held)
        context = replace(context, exact=exact)
    if training or not reads_directly(head, query, mask):
        context = context.expanded(head)
    return *context.read(head, query, mask, attend, training=training), context


def _latent(
    head: LatentHead, latent: Tensor | None, key_value: Tensor | None, first_slot: int | Tensor
) -> Tensor:
    """Latents (B, T, R) of the new tokens from a slot on, as they are stored."""
    if latent is not None:
        return latent
    assert key_value is not None
    return head.latent_in_block(key_value, first_slot)


def _angles(
    head: LatentHead,
    query: Tensor,
    position_embeddings: Angles | None,
    position_ids: Tensor | None,
    layer: CachedLayer,
    slots: Slots,
) -> tuple[Angles | None, Angles | None]:
    """Angles of the new queries, and of all slots that are read.

    Without history the model's own positions serve, unless keys or a part of them are stored
    rotated, which later queries must find rotated by their slot. Where norms follow the rotation,
    scores depend on more than differences of positions, so that slots count from each row's first
    token.
    """
    if head.rotary is None or position_embeddings is None:
        return None, None
    by_slot = head.stores_rotated or head.decouples
    fresh = slots.num_keys == query.shape[2] and not by_slot
    if layer.cache is None or fresh:
        return position_embeddings, position_embeddings
    if head.norms_follow_rotation and position_ids is not None:
        last = slots.first_query + query.shape[2] - 1
        of_slots = head.rotary.angles(slots.first_key + slots.num_keys, query, last)
        keys = torch.arange(slots.num_keys, device=query.device) + slots.first_key
        padding = slots.first_query - position_ids[:, :1]
        return angles_at(of_slots, position_ids), angles_at(of_slots, keys - padding)
    return head.rotary.window_angles(*slots, query)


def attend_by_kernels(
    head: LatentHead,
    query: Tensor,
    latent: Tensor | None,
    key_value: Tensor | None,
    layer: CachedLayer,
    position_embeddings: Angles | None,
    step: RowStep,
) -> tuple[Tensor, PoolContext]:
    """Write new latents to the pool and read it; heads' outputs (B, T, H*D), and what was read.

    Args:
        query: before rotation, (B, H, T, D).
        latent, key_value: as of `attend_by_torch`.
        layer: whose step it is.
        position_embeddings: angles of the new tokens by position.
    """
    num_new = query.shape[2]
    channels = None
    if key_value is not None and head.exact_codec is not None:
        channels = head.exact_channels(key_value)
    runs = step.noted("runs", lambda: implementation_on(step.backend, query.device))
    if runs == "cpu":
        from .cpu_step import attend_on_cpu, encodes  # with numba, which need not be there

        if latent is None and not encodes(head, query):
            latent = _latent(head, latent, key_value, _first_new(step, num_new))
        output = attend_on_cpu(head, query, latent, key_value, channels, step)
        return output, PoolContext(step=step, num_new=num_new)
    if latent is None:
        latent = _latent(head, latent, key_value, _first_new(step, num_new))
    reading = latent_read(head, step.num_slots, latent)
    tokens = step.place(TOKENS)
    layout = row_layout(head, tokens.dtype)
    rows = rows_in_pool(layout, step.arena, step.frame_bytes, tokens.lifetime, tokens.place)
    slot_mapping = step.tables(TOKENS).slot_mapping
    append_to_pool(head, latent.flatten(0, 1), rows, slot_mapping, backend=step.backend)
    context = PoolContext(step=step, num_new=num_new, rows=rows, reading=reading)
    if channels is not None:
        if num_new > MAX_DECODE_TOKENS:
            context = replace(context, exact=_exact_view(head, channels, layer, step))
        else:
            recent, first = append_exact(head, channels, step)
            context = replace(context, recent=recent, first=first)
    return context.read(head, query, position_embeddings), context


def _first_new(step: RowStep, num_new: int) -> int | Tensor:
    """Slot of the first of `num_new` tokens; of each sequence's, (B, 1), where slots differ."""
    if step.first_new is not None:
        return step.first_new
    return step.context_lens.long()[:, None] - num_new


def _exact_view(head: LatentHead, channels: Tensor, layer: CachedLayer, step: RowStep) -> ExactView:
    """Exact rows of many new tokens, which are stored and read by torch."""
    first = (
        torch.zeros_like(step.context_lens[:1]) if step.first_slots is None else step.first_slots
    )
    slots = Slots(step.num_slots - channels.shape[1], 0, step.num_slots)
    return layer.exact_view(head, channels, head.exact_rows(channels), first.long(), slots)
