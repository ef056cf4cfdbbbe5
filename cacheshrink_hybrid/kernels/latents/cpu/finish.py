"""From what was read of coded rows to the heads' outputs, on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..paged_rows import PagedRows
from .finishing import finish_heads
from .row_view import (
    CODED,
    NO_LIMIT,
    PLACE,
    READING,
    ExactRows,
    coded_view,
    coding_tables,
    place_view,
    planes_view,
    row_tables,
    runs_view,
)

NO_SLOTS, NO_TABLE = np.empty(0, np.int64), np.empty((0, 0), np.int32)
NO_ROWS, NO_CHANNELS = np.empty((0, 0), np.int64), np.empty((0, 0), np.float32)
NO_ANGLES, NO_SINKS = np.empty((1, 0), np.float32), np.empty(0, np.float32)
NO_ARENA, NO_CODED, NO_PLACE = np.empty(0, np.uint8), np.empty(0, CODED), np.zeros(1, PLACE)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ExactPart:
    """Exact rows of one kind that the new tokens write and read.

    Attributes:
        rows: where they lie; a row holds the keys of all heads before rotation, then the values.
        frame_table: (B, frames) int32.
        slot_mapping: of the new tokens, (B * T,) int64, -1 for nowhere.
        context_lens: slot behind each sequence's last query, as rows count slots, (B,) int32.
        first_slots: slots before these are not seen, (B,) int32; None for none.
        turns: slots that rows lie before those that angles count, (B,) int32; None for none.
        window: slots that a query sees; None for all.
        limit: slots from here on hold no rows; None for none.
    """

    rows: PagedRows
    frame_table: Tensor
    slot_mapping: Tensor
    context_lens: Tensor
    first_slots: Tensor | None = None
    turns: Tensor | None = None
    window: int | None = None
    limit: int | None = None


def finish_heads_cpu(
    query: Tensor,
    channels: Tensor | None,
    parts: tuple[ExactPart | None, ExactPart | None],
    mixed: Tensor,
    lse: Tensor,
    *,
    angles: tuple[Tensor, Tensor] | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    value_up: tuple[Tensor, Tensor],
) -> Tensor:
    """Write and read exact rows, merge what takes part in the softmax, and make values.

    Args:
        query: rotated, (B, T, H, D).
        channels: of the new tokens' exact rows, (B, T, 2*J*D); None without exact rows.
        parts: exact rows of the first and of the recent tokens; None for none.
        mixed, lse: value channels (B, T, H, Rv) of coded rows and log-sum-exp (B, T, H).
        angles: cos and sin by slot, (slots, rotary dim / 2); None without rotation.
        scale, softcap: of scores, see `LatentRead`.
        sinks: logits without a value, (H,).
        value_up: weight (J, D, Rv) and bias (J * D,).

    Returns:
        (B, T, H, D) in the type of the queries.
    """
    weight, bias = (floats(x) for x in value_up)
    J, D, _ = weight.shape
    turning = (NO_ANGLES, NO_ANGLES) if angles is None else tuple(floats(x) for x in angles)
    score = J, D, query.shape[1], scale, softcap or 0.0
    arena = next((part.rows.arena.numpy() for part in parts if part is not None), NO_ARENA)
    output = torch.empty(query.shape)
    finish_heads(
        floats(query),
        NO_CHANNELS if channels is None else floats(channels.flatten(0, 1)),
        arena,
        tuple(_exact_rows(part, score, turning) for part in parts),
        (coding_tables(), row_tables()),
        (floats(mixed), lse.numpy()),
        NO_SINKS if sinks is None else floats(sinks),
        (weight, bias.reshape(J, D)),
        output.numpy(),
    )
    return output.to(query.dtype)


def floats(x: Tensor) -> np.ndarray:
    """A tensor as contiguous float32, in its own memory where it is so already."""
    if x.requires_grad:
        x = x.detach()
    return x.float().contiguous().numpy()


def _exact_rows(
    part: ExactPart | None,
    score: tuple[int, int, int, float, float],
    turning: tuple[np.ndarray, ...],
) -> ExactRows:
    J, D, new, scale, softcap = score
    view = np.zeros(1, READING)
    if part is None:
        return ExactRows(
            NO_SLOTS,
            NO_TABLE,
            NO_TABLE,
            NO_ROWS,
            NO_ROWS,
            NO_CODED,
            NO_PLACE,
            NO_ROWS,
            view,
            NO_CHANNELS,
            *turning,
        )
    rows, layout = part.rows, part.rows.layout
    sequences = np.zeros((4, len(part.frame_table)), np.int32)
    sequences[0] = part.context_lens.numpy()
    sequences[1] = new
    if part.first_slots is not None:
        sequences[2] = part.first_slots.numpy()
    if part.turns is not None:
        sequences[3] = part.turns.numpy()
    view[0] = (
        J,
        D,
        J * D,
        D,
        D,
        part.window or 0,
        NO_LIMIT if part.limit is None else part.limit,
        layout.num_channels,
        rows.frame_bytes,
        rows.frame_tokens,
        rows.layer_offset,
        layout.row_bytes,
        -1,
        True,
        scale,
        softcap,
        0.0,
    )
    return ExactRows(
        part.slot_mapping.numpy(),
        part.frame_table.numpy(),
        sequences,
        runs_view(layout),
        planes_view(layout),
        coded_view(layout),
        place_view(rows),
        np.array([[0, D]]),
        view,
        np.zeros((J, D), np.float32),
        *turning,
    )
