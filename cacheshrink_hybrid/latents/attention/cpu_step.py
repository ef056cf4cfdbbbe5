"""One step of attention over rows in the pool, by functions compiled for the CPU: coded rows are
read as by `latent_decode`, and what else there is to do is done by `finish_heads_cpu`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.latents.cpu.finish import ExactPart, finish_heads_cpu
from ...kernels.latents.decode import LatentRead
from ...kernels.latents.decode.cpu import read_coded
from ...kernels.latents.paged_rows import PagedRows
from ...pool.lifetime import FIRST, RECENT, TOKENS
from ...pool.memory import RowStep
from .head import LatentHead
from .pool_read import asked_of, rows_in_pool


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
    slots = StepSlots.of(head, step, query.shape[2])
    table = step.places[TOKENS].frame_table
    mixed, lse = read_coded(asked, rows, table, slots.coded, read, offset)
    angles = None
    if channels is not None and head.rotary is not None:
        pairs = head.rotary.rotated_halves(head.head_dim)
        assert pairs is not None
        angles = head.rotary.pair_angles(step.num_slots, pairs // 2, query)
    output = finish_heads_cpu(
        query.transpose(1, 2).contiguous(),
        channels,
        (_first(head, step, slots), _recent(head, step, slots)),
        mixed,
        lse,
        angles=angles,
        scale=head.scale,
        softcap=head.softcap,
        sinks=head.sinks,
        value_up=head.value_up.matrix(mixed),
    )
    return output.flatten(2)


class StepSlots(NamedTuple):
    """Which slots new tokens read of coded rows, of exact recent ones and of exact first ones, as
    kernels take them: lengths, new tokens, first slots, and the slot of the angles that slot 0 is
    rotated by, (4, B) int32 each."""

    coded: NDArray
    recent: NDArray
    first: NDArray

    @classmethod
    def of(cls, head: LatentHead, step: RowStep, num_new: int) -> StepSlots:
        window, num_sinks = head.plan.exact_window, head.plan.exact_sinks
        recent = np.zeros((4, len(step.context_lens)), np.int32)
        recent[0] = step.context_lens.numpy()
        recent[1] = num_new
        if step.first_slots is not None:
            recent[2] = step.first_slots.numpy()
        # As if the queries stood before their window: then they see what lies behind the sinks.
        coded, first = recent.copy(), recent.copy()
        coded[0] = np.maximum(coded[0] - window, 0)
        coded[2] += num_sinks
        # First rows are counted from the first token.
        first[0] -= first[2] + window
        first[3], first[2] = first[2], 0
        return cls(coded, recent, first)


def _recent(head: LatentHead, step: RowStep, slots: StepSlots) -> ExactPart | None:
    """Exact rows of the window, in the slots of their tokens."""
    if not head.plan.exact_window:
        return None
    return ExactPart(
        rows=_exact_rows(head, step, RECENT),
        frame_table=step.places[RECENT].frame_table,
        slot_mapping=step.places[RECENT].slot_mapping,
        sequences=slots.recent,
        window=head.plan.exact_window,
    )


def _first(head: LatentHead, step: RowStep, slots: StepSlots) -> ExactPart | None:
    """Exact rows of the first tokens, which queries see behind their window."""
    if not head.plan.exact_sinks:
        return None
    return ExactPart(
        rows=_exact_rows(head, step, FIRST),
        frame_table=step.places[FIRST].frame_table,
        slot_mapping=step.places[FIRST].slot_mapping,
        sequences=slots.first,
        limit=head.plan.exact_sinks,
    )


def _exact_rows(head: LatentHead, step: RowStep, kind: str) -> PagedRows:
    assert head.exact_codec is not None
    place = step.places[kind]
    layout = head.exact_codec.layout
    return rows_in_pool(layout, step.arena, step.frame_bytes, place.lifetime, place.place)
