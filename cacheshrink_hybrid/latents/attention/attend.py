"""One step of attention: new latents are stored, and the new queries read the context.

By torch the context comes out of the cache as a tensor, by kernels it is read where it lies. Both
choose among the readers beside this file by how many queries there are, and whether some tokens
have exact rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...codecs.straight_through import newest_straight_through
from ...kernels.backend import implementation_on
from ...pool.lifetime import TOKENS
from ...pool.memory import RowStep
from .cached_layer import CachedLayer, Slots
from .dense_read import (
    MAX_DECODE_TOKENS,
    Attend,
    read_expanded,
    read_latents,
    reads_directly,
    without_empty_slots,
)
from .exact_read import angles_at, read_beside, read_with_exact
from .head import LatentHead
from .kernel_view import latent_read, row_layout
from .left_padding import first_visible_slots
from .pool_read import append_to_pool, read_exact_in_pool, read_pool, rows_in_pool
from .prefill import expanded_prefill, expanding_pays
from .rotary_key import split_queries, stored_at
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
) -> tuple[Tensor, Tensor | None]:
    """Heads' outputs (B, T, H*D) over what a cache gives out with the new latents, and
    probabilities (B, H, T, S) where they are formed.

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
    meeting = split_queries if head.decouples else LatentHead.queries
    query = meeting(head, query, query_angles)
    latent = stored_at(head, _latent(head, latent, key_value, slots.first_query), query_angles)
    channels = rows = None
    if key_value is not None and head.exact_codec is not None:
        channels = head.exact_channels(key_value)
        rows = head.exact_rows(channels)
    stored, held = layer.append(head.encoded(latent, layer.coding_on(latent.device)), rows)
    if mask is None and layer.is_static:
        mask = without_empty_slots(head, query, stored.shape[1], slots.first_query, slots.first_key)
    context = head.decoded(stored, query.dtype)
    if head.codec is not None:
        first_new = slots.first_query - slots.first_key
        context = newest_straight_through(latent, context, first_new, dim=1)

    if channels is not None and rows is not None:
        first = first_visible_slots(mask, context.shape[1], query.device) + slots.first_key
        exact = layer.exact_view(head, channels, rows, first, slots, held)
        return read_with_exact(
            head, query, context, exact, slots, mask, key_angles, attend, training=training
        )
    if not training and reads_directly(head, query, mask):
        return read_latents(head, query, context, mask, key_angles, slots.first_key)
    return read_expanded(head, query, context, mask, key_angles, slots.first_key, attend)


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
) -> Tensor:
    """Write new latents to the pool and read it; heads' outputs (B, T, H*D).

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
        return attend_on_cpu(head, query, latent, key_value, channels, step)
    if latent is None:
        latent = _latent(head, latent, key_value, _first_new(step, num_new))
    if head.rotary is not None:
        angles = position_embeddings
        if step.first_new is not None:
            angles = head.rotary.window_angles(step.first_new, 0, step.num_slots, query)[0]
        query = head.queries(query, angles)
    read = latent_read(head, step.num_slots, latent)
    tokens, tables = step.place(TOKENS), step.tables(TOKENS)
    layout = row_layout(head, tokens.dtype)
    rows = rows_in_pool(layout, step.arena, step.frame_bytes, tokens.lifetime, tokens.place)
    append_to_pool(head, latent.flatten(0, 1), rows, tables.slot_mapping, backend=step.backend)
    beside = None
    if channels is not None:
        if num_new > MAX_DECODE_TOKENS:
            beside = _read_beside(head, query, channels, layer, step)
        else:
            beside = read_exact_in_pool(head, query, channels, step)
    elif (
        num_new > MAX_DECODE_TOKENS
        and step.ends_together
        and step.first_slots is None
        and expanding_pays(head, read, num_new)
    ):
        return expanded_prefill(head, query, rows, tables.frames, step.num_slots)
    return read_pool(
        head,
        query,
        rows,
        tables.frames,
        step.context_lens,
        read=read,
        first_slots=step.first_slots,
        beside=beside,
        backend=step.backend,
    )


def _first_new(step: RowStep, num_new: int) -> int | Tensor:
    """Slot of the first of `num_new` tokens; of each sequence's, (B, 1), where slots differ."""
    if step.first_new is not None:
        return step.first_new
    return step.context_lens.long()[:, None] - num_new


def _read_beside(
    head: LatentHead, query: Tensor, channels: Tensor, layer: CachedLayer, step: RowStep
) -> tuple[Tensor, Tensor]:
    """Exact rows of many new tokens are stored and read by torch: those between the first and the
    last ones never lie in the pool."""
    first = (
        torch.zeros_like(step.context_lens[:1]) if step.first_slots is None else step.first_slots
    )
    slots = Slots(step.num_slots - query.shape[2], 0, step.num_slots)
    exact = layer.exact_view(head, channels, head.exact_rows(channels), first.long(), slots)
    return read_beside(head, query, exact, step.num_slots)
