"""One step of attention over rows in the pool, by functions compiled for the CPU: coded rows are
read by `latent_decode`, and what else there is to do is done by `finish_heads_cpu`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.latents.cpu.finish import ExactPart, finish_heads_cpu
from ...kernels.latents.decode import LatentRead, latent_decode
from ...kernels.latents.paged_rows import PagedRows
from ...pool.lifetime import FIRST, RECENT, TOKENS
from ...pool.memory import RowStep
from .head import LatentHead
from .pool_read import asked_of, coded_slots, rows_in_pool


def attend_on_cpu(
    head: LatentHead,
    query: Tensor,
    channels: Tensor | None,
    rows: PagedRows,
    read: LatentRead,
    step: RowStep,
) -> Tensor:
    """Heads' outputs (B, T, H*D) of rotated queries (B, H, T, D) over the rows of a step, whose
    coded ones are appended already.

    Args:
        channels: of the new tokens' exact rows, (B, T, 2*J*D), which are appended here; None
            where no token stays exact.
        read: from `latent_read`.
    """
    asked, offset = asked_of(head, query)
    context_lens, first_slots = coded_slots(head, step.context_lens, step.first_slots)
    mixed, lse = latent_decode(
        asked,
        rows,
        step.places[TOKENS].frame_table,
        context_lens,
        read=read,
        offset=offset,
        first_slots=first_slots,
        backend=step.backend,
    )
    angles = None
    if channels is not None and head.rotary is not None:
        pairs = head.rotary.rotated_halves(head.head_dim)
        assert pairs is not None
        angles = head.rotary.pair_angles(step.num_slots, pairs // 2, query)
    output = finish_heads_cpu(
        query.transpose(1, 2).contiguous(),
        channels,
        (_first(head, step), _recent(head, step)),
        mixed,
        lse,
        angles=angles,
        scale=head.scale,
        softcap=head.softcap,
        sinks=head.sinks,
        value_up=head.value_up.matrix(mixed),
    )
    return output.flatten(2)


def _recent(head: LatentHead, step: RowStep) -> ExactPart | None:
    """Exact rows of the window, in the slots of their tokens."""
    if not head.plan.exact_window:
        return None
    return ExactPart(
        rows=_exact_rows(head, step, RECENT),
        frame_table=step.places[RECENT].frame_table,
        slot_mapping=step.places[RECENT].slot_mapping,
        context_lens=step.context_lens,
        first_slots=step.first_slots,
        window=head.plan.exact_window,
    )


def _first(head: LatentHead, step: RowStep) -> ExactPart | None:
    """Exact rows of the first tokens, counted from them. Queries see those behind their window, as
    if they stood before it."""
    if not head.plan.exact_sinks:
        return None
    first = torch.zeros_like(step.context_lens) if step.first_slots is None else step.first_slots
    return ExactPart(
        rows=_exact_rows(head, step, FIRST),
        frame_table=step.places[FIRST].frame_table,
        slot_mapping=step.places[FIRST].slot_mapping,
        context_lens=step.context_lens - first - head.plan.exact_window,
        turns=first,
        limit=head.plan.exact_sinks,
    )


def _exact_rows(head: LatentHead, step: RowStep, kind: str) -> PagedRows:
    assert head.exact_codec is not None
    place = step.places[kind]
    layout = head.exact_codec.layout
    return rows_in_pool(layout, step.arena, step.frame_bytes, place.lifetime, place.place)
