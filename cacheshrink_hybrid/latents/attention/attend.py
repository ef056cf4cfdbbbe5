"""One step of attention: new latents are stored, and the new queries read the context.

By torch the context comes out of the cache as a tensor, by kernels it is read where it lies. Both
choose among the readers beside this file by how many queries there are, and whether some tokens
have exact copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...codecs.straight_through import newest_straight_through
from ...errors import NotSupportedError
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
from .exact_read import read_copies, read_with_exact
from .head import LatentHead
from .kernel_view import latent_read, row_layout
from .left_padding import first_visible_slots
from .pool_read import append_to_pool, read_pool, rows_in_pool
from .prefill import expanded_prefill, expanding_pays
from .rotation import Angles


def attend_by_torch(
    head: LatentHead,
    query: Tensor,
    latent: Tensor,
    layer: CachedLayer,
    position_embeddings: Angles | None,
    mask: Any,
    attend: Attend,
    *,
    training: bool,
) -> tuple[Tensor, Tensor | None]:
    """Heads' outputs (B, T, H*D) over what a cache gives out with the new latents, and
    probabilities (B, H, T, S) where they are formed.

    Args:
        query: before rotation, (B, H, T, D).
        latent: of the new tokens, (B, T, R).
        layer: that they are appended to.
        position_embeddings: angles of the new tokens by position.
        mask: as `attend` takes it.
        attend: attention function for many queries.
        training: keys and values are expanded, which dropout and gradients go through.
    """
    slots = layer.slots(query.shape[2])
    query_angles, key_angles = _angles(head, query, position_embeddings, layer, slots)
    if query_angles is not None:
        query, latent = head.turned(query, latent, query_angles)
    stored = layer.append(head.encoded(latent))
    if mask is None and layer.is_static:
        mask = without_empty_slots(head, query, stored.shape[1], slots.first_query, slots.first_key)
    context = head.decoded(stored, query.dtype)
    if head.codec is not None:
        first_new = slots.first_query - slots.first_key
        context = newest_straight_through(latent, context, first_new, dim=1)

    # Training reads every token as coded, also where it runs a pass again for its gradients.
    learns = training and (layer.cache is None or torch.is_grad_enabled())
    if head.plan.keeps_exact and not (learns and layer.cache is None):
        unlike = head.unlike_matrices(query)
        if unlike is not None:
            raise NotSupportedError(
                f"{unlike} of layer {layer.layer_idx} is not one linear map for all tokens, which "
                "exact_sinks and exact_window read with; merge the adapter, remove the hook, "
                "or convert without exact tokens"
            )
        copies = layer.exact_tokens(head.plan, slots.first_query)
        first = first_visible_slots(mask, len(query), context.shape[1], query.device)
        exact = copies.update(latent, first + slots.first_key)
        if not learns:
            first_query = slots.first_key + context.shape[1] - query.shape[2]
            return read_with_exact(
                head, query, context, exact, first_query, slots.first_key, mask, key_angles
            )
    if not training and reads_directly(head, query, mask):
        return read_latents(head, query, context, mask, key_angles)
    return read_expanded(head, query, context, mask, key_angles, attend)


def _angles(
    head: LatentHead,
    query: Tensor,
    position_embeddings: Angles | None,
    layer: CachedLayer,
    slots: Slots,
) -> tuple[Angles | None, Angles | None]:
    """Angles of the new queries, and of the keys that are rotated when they are read.

    Without history the model's own positions serve, unless keys are stored rotated, which later
    queries must find rotated by their slot.
    """
    if head.rotary is None or position_embeddings is None:
        return None, None
    fresh = slots.num_keys == query.shape[2] and not head.stores_rotated
    if layer.cache is None or fresh:
        angles = position_embeddings, position_embeddings
    else:
        angles = head.rotary.window_angles(*slots, query)
    return angles[0], None if head.stores_rotated else angles[1]


def attend_by_kernels(
    head: LatentHead,
    query: Tensor,
    latent: Tensor,
    layer: CachedLayer,
    position_embeddings: Angles | None,
    step: RowStep,
) -> Tensor:
    """Write the new latents (B, T, R) to the pool and read it; heads' outputs (B, T, H*D).

    Args:
        query: before rotation, (B, H, T, D).
        layer: whose step it is.
        position_embeddings: angles of the new tokens by position.
    """
    num_new = query.shape[2]
    angles = position_embeddings if head.rotary is not None else None
    if angles is not None and step.first_new is not None:
        assert head.rotary is not None
        angles = head.rotary.window_angles(step.first_new, 0, step.num_slots, query)[0]
    if angles is not None:
        query, latent = head.turned(query, latent, angles)
    layout, read = row_layout(head, latent.dtype), latent_read(head, step.num_slots, latent)
    rows = rows_in_pool(layout, step.arena, step.frame_bytes, step.lifetime, step.place)
    append_to_pool(head, latent.flatten(0, 1), rows, step.slot_mapping, backend=step.backend)

    context_lens, first_slots, beside = step.context_lens, step.first_slots, None
    if head.plan.keeps_exact:
        copies = layer.exact_tokens(head.plan, step.num_slots - num_new)
        first = torch.zeros_like(context_lens) if first_slots is None else first_slots
        exact = copies.update(latent, first.long())
        beside = read_copies(head, query, exact, step.num_slots)
        # As if the queries stood before their window: then they see what lies behind the sinks.
        context_lens = (context_lens - head.plan.exact_window).clamp_min(0)
        first_slots = first + head.plan.exact_sinks
    elif (
        num_new > MAX_DECODE_TOKENS
        and step.ends_together
        and first_slots is None
        and expanding_pays(head, read, num_new)
    ):
        return expanded_prefill(head, query, rows, step.frame_table, step.num_slots)
    return read_pool(
        head,
        query,
        rows,
        step.frame_table,
        context_lens,
        read=read,
        first_slots=first_slots,
        beside=beside,
        backend=step.backend,
    )
