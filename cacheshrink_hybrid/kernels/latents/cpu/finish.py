"""From what was read of coded rows to the heads' outputs, on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....codecs.row_layout import RowLayout
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
    noted,
    place_view,
    planes_view,
    reading_of,
    row_tables,
    runs_view,
)

NO_CHANNELS, NO_SINKS = np.empty((0, 0), np.float32), np.empty(0, np.float32)
NO_ANGLES, NO_ARENA = np.empty((1, 0), np.float32), np.empty(0, np.uint8)
NO_TABLE, NO_ROWS = np.empty((0, 0), np.int32), np.empty((0, 0), np.int64)
NO_PART = (
    np.empty(0, np.int64),
    NO_TABLE,
    NO_TABLE,
    NO_ROWS,
    NO_ROWS,
    np.empty(0, CODED),
    np.zeros(1, PLACE),
    NO_ROWS,
    np.zeros(1, READING),
    NO_CHANNELS,
)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ExactPart:
    """Exact rows of one kind that the new tokens write and read.

    Attributes:
        rows: where they lie; a row holds the keys of all heads before rotation, then the values.
        frame_table: (B, frames) int32.
        slot_mapping: of the new tokens, (B * T,) int64, -1 for nowhere.
        sequences: (4, B) int32, as `read_block` takes them.
        window: slots that a query sees; None for all.
        limit: slots from here on hold no rows; None for none.
    """

    rows: PagedRows
    frame_table: Tensor
    slot_mapping: Tensor
    sequences: NDArray
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
    score = J, D, scale, softcap or 0.0
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


def floats(x: Tensor) -> NDArray:
    """A tensor as contiguous float32, in its own memory where it is so already."""
    if x.requires_grad:
        x = x.detach()
    if x.dtype != torch.float32:
        x = x.float()
    return x.contiguous().numpy()


@noted
def _whole_keys(layout: RowLayout, head_dim: int) -> NDArray:
    """`shares_view` of keys that lie head by head."""
    return np.array([[0, head_dim]])


@noted
def _no_bias(layout: RowLayout, heads: int, head_dim: int) -> NDArray:
    return np.zeros((heads, head_dim), np.float32)


def _exact_rows(
    part: ExactPart | None,
    score: tuple[int, int, float, float],
    turning: tuple[NDArray, ...],
) -> ExactRows:
    J, D, scale, softcap = score
    if part is None:
        return ExactRows(*NO_PART, *turning)
    rows, layout = part.rows, part.rows.layout
    view = reading_of(
        layout,
        J,
        D,
        J * D,
        D,
        D,
        part.window or 0,
        NO_LIMIT if part.limit is None else part.limit,
        rows.frame_bytes,
        rows.frame_tokens,
        rows.layer_offset,
        scale,
        softcap,
        0.0,
    )
    return ExactRows(
        part.slot_mapping.numpy(),
        part.frame_table.numpy(),
        part.sequences,
        runs_view(layout),
        planes_view(layout),
        coded_view(layout),
        place_view(rows),
        _whole_keys(layout, D),
        view,
        _no_bias(layout, J, D),
        *turning,
    )
