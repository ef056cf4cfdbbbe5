"""Reading rows of latents where they lie in the pool, by kernels.

What `dense_read` does with decoded latents, these do with their bytes: queries are absorbed where
the plan says so, a kernel reads the coded rows, and the mixed latents become heads' outputs. What
queries read elsewhere, and logits without a value, take part by the log-sum-exp of the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...codecs.row_layout import RowLayout
from ...kernels.backend import Backend
from ...kernels.latents.append import latent_append
from ...kernels.latents.decode import LatentRead, latent_decode
from ...kernels.latents.paged_rows import PagedRows
from ...kernels.latents.prefill import latent_prefill
from ...pool.lifetime import FIRST, RECENT, LifetimeClass
from ...pool.memory import RowStep
from .dense_read import MAX_DECODE_TOKENS
from .exact_read import QUERY_BLOCK, angles_at, read_exact
from .head import LatentHead
from .rotation import Angles


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
    costs = head.costs if rows.layout.gain_byte is not None else None
    latent_append(latent, rows, slot_mapping, costs=costs, backend=backend)


@dataclass(frozen=True, eq=False, slots=True)
class ExactTable:
    """Exact rows of a batch in frames.

    Attributes:
        rows: the layer's.
        frames: of each sequence, (B, frames) int32.
    """

    rows: PagedRows
    frames: Tensor

    def channels(self, head: LatentHead, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """What rows hold at `positions` (B, n) of their sequences, (B, n, 2*J*D); anything where
        there are none."""
        assert head.exact_codec is not None
        return head.exact_codec.decode(self.rows.at(self.frames, positions), dtype)


def append_exact(
    head: LatentHead, channels: Tensor, step: RowStep
) -> tuple[ExactTable | None, ExactTable | None]:
    """Write the exact rows of T new tokens, of channels (B, T, 2*J*D); returns where recent and
    first ones lie, None where no such rows are kept."""
    recent = _append_exact(head, channels, step, RECENT) if head.plan.exact_window else None
    return recent, _append_exact(head, channels, step, FIRST) if head.plan.exact_sinks else None


def _append_exact(head: LatentHead, channels: Tensor, step: RowStep, kind: str) -> ExactTable:
    """Write the new rows of one kind; returns where all of them lie."""
    assert head.exact_codec is not None
    place, tables = step.place(kind), step.tables(kind)
    rows = rows_in_pool(
        head.exact_codec.layout, step.arena, step.frame_bytes, place.lifetime, place.place
    )
    latent_append(channels.flatten(0, 1), rows, tables.slot_mapping, backend=step.backend)
    return ExactTable(rows, tables.frames)


def read_exact_in_frames(
    head: LatentHead,
    query: Tensor,
    recent: ExactTable | None,
    first: ExactTable | None,
    context_lens: Tensor,
    num_slots: int,
    first_slots: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What rotated queries (B, H, T, D) of the last T slots read of exact rows, as `read_exact`
    gives it, in blocks of queries.

    Args:
        recent: rows of the tokens in all windows of these queries, by slot; None for no window.
        first: rows of the first tokens, counted from `first_slots`; None for no sinks.
        context_lens: slots of each sequence, (B,) int32.
        num_slots: more than any slot.
        first_slots: slots before these are padding, (B,) int32; None if there is none.
    """
    num_new = query.shape[2]
    end = context_lens.long()[:, None]  # (B, 1)
    begin = torch.zeros_like(end) if first_slots is None else first_slots.long()[:, None]
    angles = None if head.rotary is None else head.rotary.angles(num_slots, query)
    parts = []
    for start in range(0, num_new, QUERY_BLOCK):
        asked = query[:, :, start : start + QUERY_BLOCK]
        behind = num_new - start - asked.shape[2]
        parts.append(_read_exact_block(head, asked, recent, first, end - behind, begin, angles))
    if len(parts) == 1:
        return parts[0]
    means, sums = zip(*parts, strict=True)
    return torch.cat(means, dim=1), torch.cat(sums, dim=1)


def _read_exact_block(
    head: LatentHead,
    query: Tensor,
    recent: ExactTable | None,
    first: ExactTable | None,
    end: Tensor,
    begin: Tensor,
    angles: Angles | None,
) -> tuple[Tensor, Tensor]:
    """`read_exact_in_frames` of neighbouring queries, of the last T slots before `end` (B, 1) of
    those from `begin` (B, 1) on.

    Args:
        angles: by slot; None where keys are not rotated.
    """
    num_new, window, num_sinks = query.shape[2], head.plan.exact_window, head.plan.exact_sinks
    own = end - num_new + torch.arange(num_new, device=end.device)  # (B, T)
    found, seen, slots = [], [], []
    if recent is not None:
        at = torch.arange(1 - window - num_new, 0, device=end.device) + end
        distance = own[..., None] - at[:, None]
        seen.append((at >= begin)[:, None] & (distance >= 0) & (distance < window))
        found.append(recent.channels(head, at, query.dtype))
        slots.append(at)
    if first is not None:
        places = torch.arange(num_sinks, device=end.device).expand(len(end), -1)
        seen.append(own[..., None] - (begin + places)[:, None] >= window)
        found.append(first.channels(head, places, query.dtype))
        slots.append(begin + places)
    rows, visible = torch.cat(found, dim=1), torch.cat(seen, dim=2)[:, None]
    if angles is not None:
        angles = angles_at(angles, torch.cat(slots, dim=1))
    return read_exact(head, query, rows, visible, angles)


def read_pool(
    head: LatentHead,
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    *,
    read: LatentRead,
    first_slots: Tensor | None = None,
    beside: tuple[Tensor, Tensor] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Heads' outputs (B, T, H*D) of rotated queries (B, H, T, D): by `latent_decode` if they are
    few, else by `latent_prefill`, which say what the rest means.

    Args:
        context_lens, first_slots: of the text; where tokens stay exact, coded rows are read of
            those in between only.
        read: from `latent_read`.
        beside: what the queries read of exact rows, from `read_exact`; None where none are.
    """
    num_new = query.shape[2]
    context_lens, first_slots = coded_slots(head, context_lens, first_slots)
    asked, offset = asked_of(head, query)
    options: dict[str, Any] = {
        "read": read,
        "offset": offset,
        "first_slots": first_slots,
        "backend": backend,
    }
    if num_new <= MAX_DECODE_TOKENS:
        mixed, lse = latent_decode(asked, rows, frame_table, context_lens, **options)
    else:
        new_lens = torch.full_like(context_lens, num_new)
        mixed, lse = latent_prefill(asked, rows, frame_table, context_lens, new_lens, **options)
    return _whole(head, mixed, lse, beside)


def coded_slots(
    head: LatentHead, context_lens: Tensor, first_slots: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Lengths and first slots of what is read of coded rows, (B,) int32."""
    plan = head.plan
    if plan.keeps_exact:
        # As if the queries stood before their window: then they see what lies behind the sinks.
        context_lens = (context_lens - plan.exact_window).clamp_min(0)
        if plan.exact_sinks:
            first = torch.zeros_like(context_lens) if first_slots is None else first_slots
            first_slots = first + plan.exact_sinks
    return context_lens, first_slots


def asked_of(head: LatentHead, query: Tensor) -> tuple[Tensor, Tensor | None]:
    """What meets coded rows of rotated queries (B, H, T, D): queries (B, T, H, K), and (B, T, H)
    that is added to their products; None for nothing."""
    if head.rebuilds_keys or head.stores_rotated:
        return query.transpose(1, 2).contiguous(), None
    absorbed, offset = head.absorbed(query)
    assert offset is not None
    asked, offset = (x.unflatten(1, query.shape[1:3]).transpose(1, 2) for x in (absorbed, offset))
    return asked.contiguous(), offset


def _whole(
    head: LatentHead, mixed: Tensor, lse: Tensor, beside: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Heads' outputs (B, T, H*D) of value channels (B, T, H, Rv) mixed from coded rows, and of what
    else takes part in the softmax.

    Args:
        lse: log-sum-exp of the scores of the coded rows, (B, T, H).
        beside: mean values (B, T, H*D) of exact rows, and the log-sum-exp of their scores.
    """
    if beside is None and head.sinks is None:
        return head.outputs(mixed.transpose(1, 2).flatten(1, 2))
    total = lse if beside is None else torch.logaddexp(lse, beside[1])
    if head.sinks is not None:
        total = torch.logaddexp(total, head.sinks.float())
    # Sequences of no slots read nothing.
    total = torch.where(total == -torch.inf, 0.0, total)
    share = torch.exp(lse - total)
    mixed = (mixed * share[..., None]).to(mixed.dtype)
    output = head.outputs(mixed.transpose(1, 2).flatten(1, 2), share.transpose(1, 2).flatten(1, 2))
    if beside is None:
        return output
    means, sums = beside
    weighted = means.unflatten(-1, (share.shape[2], -1)) * torch.exp(sums - total)[..., None]
    return output + weighted.flatten(2).to(output.dtype)
