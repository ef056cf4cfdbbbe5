"""Reading rows of latents where they lie in the pool, by kernels.

What `dense_read` does with decoded latents, these do with their bytes: queries are absorbed where
the plan says so, a kernel reads the rows, and the mixed latents become heads' outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...codecs.row_layout import RowLayout
from ...kernels.backend import Backend
from ...kernels.latents.append import latent_append
from ...kernels.latents.decode import ExactPages, LatentRead, latent_decode
from ...kernels.latents.paged_rows import PagedRows
from ...kernels.latents.prefill import latent_prefill
from ...pool.lifetime import FIRST, RECENT, LifetimeClass
from ...pool.memory import RowStep
from .dense_read import MAX_DECODE_TOKENS
from .head import LatentHead


def rows_in_pool(
    layout: RowLayout, arena: Tensor, frame_bytes: int, lifetime: LifetimeClass, place: int
) -> PagedRows:
    """The rows of a layer.

    Args:
        layout: of a row, from `row_layout`.
        arena, frame_bytes: of the pool.
        lifetime: class of layers that this one belongs to.
        place: of the layer in its class.
    """
    return PagedRows(
        arena=arena,
        layout=layout,
        frame_bytes=frame_bytes,
        frame_tokens=lifetime.tokens_per_frame,
        layer_offset=lifetime.offsets[place],
    )


def append_to_pool(
    head: LatentHead,
    latent: Tensor,
    rows: PagedRows,
    slot_mapping: Tensor,
    *,
    backend: Backend = "auto",
) -> None:
    """Code latents (N, R) and write them to their slots (N,), see `latent_append`."""
    reach = head.reach if rows.layout.head_byte is not None else None
    latent_append(latent, rows, slot_mapping, reach=reach, backend=backend)


def exact_in_pool(head: LatentHead, latent: Tensor, step: RowStep) -> ExactPages:
    """Write the exact rows of new latents (B, T, R), and say where all of them lie."""
    assert head.exact_codec is not None
    pages, tables = {}, {}
    for kind in (RECENT, FIRST):
        place = step.places.get(kind)
        if place is None:
            continue
        rows = rows_in_pool(
            head.exact_codec.layout, step.arena, step.frame_bytes, place.lifetime, place.place
        )
        latent_append(latent.flatten(0, 1), rows, place.slot_mapping, backend=step.backend)
        pages[kind], tables[kind] = rows, place.frame_table
    return ExactPages(
        recent=pages.get(RECENT),
        recent_table=tables.get(RECENT),
        first=pages.get(FIRST),
        first_table=tables.get(FIRST),
    )


def read_pool(
    head: LatentHead,
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    *,
    read: LatentRead,
    first_slots: Tensor | None = None,
    exact: ExactPages | None = None,
    beside: tuple[Tensor, Tensor] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Heads' outputs (B, T, H*D) of rotated queries (B, H, T, D): by `latent_decode` if they are
    few, else by `latent_prefill`, which say what the rest means.

    Args:
        read: from `latent_read`.
    """
    asked, offset = query, None
    if not head.rebuilds_keys:
        absorbed, offsets = head.absorbed(query)
        assert offsets is not None
        asked = absorbed.unflatten(1, query.shape[1:3])
        offset = offsets.unflatten(1, query.shape[1:3]).transpose(1, 2)
    asked = asked.transpose(1, 2).contiguous()
    options: dict[str, Any] = {
        "read": read,
        "offset": offset,
        "first_slots": first_slots,
        "beside": beside,
        "backend": backend,
    }
    num_new = query.shape[2]
    if num_new <= MAX_DECODE_TOKENS:
        mixed, total = latent_decode(asked, rows, frame_table, context_lens, exact=exact, **options)
    else:
        new_lens = torch.full_like(context_lens, num_new)
        mixed, total = latent_prefill(asked, rows, frame_table, context_lens, new_lens, **options)
    # With sinks the probabilities do not add up to one, so the values' bias counts by their sum.
    mixed, total = mixed.transpose(1, 2).flatten(1, 2), total.transpose(1, 2).flatten(1, 2)
    return head.outputs(mixed, total)
