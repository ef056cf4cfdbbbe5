"""What compiled functions know of rows and of how they are read: arrays of numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....codecs import levels
from ....codecs.row_layout import RowLayout
from ..decode.read import LatentRead
from ..paged_rows import PagedRows

READING = np.dtype(
    [
        *(
            (name, np.int64)
            for name in (
                "groups",
                "rank",
                "first_value",
                "value_rank",
                "value_share",
                "window",
                "limit",
                "channels",
                "frame_bytes",
                "frame_tokens",
                "layer_offset",
                "row_bytes",
                "gain_byte",
                "after_gain",
                "only_floats",
            )
        ),
        ("scale", np.float32),
        ("softcap", np.float32),
        ("epsilon", np.float32),
    ]
)
"""Where rows lie, and how they are read.

groups: of query heads that meet keys of their own; rank: channels of such a group's keys.
first_value, value_rank, value_share: first channel that is mixed, how many, and how many channels
    further those of the next group lie.
window: 0 for none. limit: slots from here on are none. channels: of a row. gain_byte: -1 for none.
after_gain: bytes of a row before its padding.
only_floats: no channel is coded, so that a lost token is NaN in all.
softcap: 0 for none.
"""


NO_LIMIT = 2**62

CODED = np.dtype(
    [
        ("kind", np.int64),
        ("channel", np.int64),
        ("channels", np.int64),
        ("outermost", np.float32),
        ("distortion", np.float32),
    ]
)
"""Runs of which the gain of a row is found: number of the kind, first channel, channels, outermost
level, and distortion of a standard normal channel."""


class RowForm(NamedTuple):
    """Rows of one kind of a layer: `runs_view`, `coded_view`, `shares_view` and `READING`."""

    runs: NDArray
    coded: NDArray
    shares: NDArray
    reading: NDArray


class StepRows(NamedTuple):
    """Rows of one kind in a step: slots of the new tokens (B * T,) int64, and `frame_table` and
    `sequences` as `read_block` takes them."""

    slots: NDArray
    frame_table: NDArray
    sequences: NDArray


class StepAngles(NamedTuple):
    """cos and sin by slot (slots, rotary dim / 2), those that turn a query back by block (blocks,
    ...), and those that turn a key by its place in a block (block, ...), float32; of no channels
    where there are none."""

    cos: NDArray
    sin: NDArray
    block_cos: NDArray
    block_sin: NDArray
    place_cos: NDArray
    place_sin: NDArray


class StepWeights(NamedTuple):
    """What a layer computes with, float32.

    encoder: of [k; v] about their mean, with keys rotated by their places in blocks, (R, 2*J*D),
        and that mean (2*J*D,); of no rows where latents are given.
    absorbing: brings queries to the channels of keys (J, D, rank), and `offset` (J, D) is the bias
        that their products lack; of no heads elsewhere.
    rebuilding: of rebuilt keys, or of queries that are absorbed block by block, (J, D, rank); bias
        (J, D) and gains of a norm (D,) are of rebuilt keys; of no heads, and no channels, for none.
    mean: table of keys' mean in a block (J, D, block); of no heads for none.
    value_up: (J, D, Rv), with bias (J, D).
    costs: of errors in channels, (R,). sinks: logits without a value, (H,); of no heads for none.
    """

    encoder: NDArray
    center: NDArray
    absorbing: NDArray
    offset: NDArray
    rebuilding: NDArray
    bias: NDArray
    norm: NDArray
    mean: NDArray
    value_up: NDArray
    value_bias: NDArray
    costs: NDArray
    sinks: NDArray


NO_WEIGHT, NO_BIAS = np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.float32)
NO_NORM, NO_SINKS = np.empty(0, np.float32), np.empty(0, np.float32)
NO_ANGLES, NO_CHANNELS = np.empty((1, 0), np.float32), np.empty((0, 0, 0), np.float32)
NO_MEAN = NO_WEIGHT, NO_ANGLES, NO_ANGLES
NO_FORM = RowForm(
    np.empty((0, 7), np.int64),
    np.empty(0, CODED),
    np.empty((0, 2), np.int64),
    np.zeros(1, READING),
)
NO_ROWS = StepRows(np.empty(0, np.int64), np.empty((0, 0), np.int32), np.empty((4, 0), np.int32))


def floats(x: Tensor) -> NDArray:
    """A tensor as contiguous float32, in its own memory where it is so already."""
    if x.requires_grad:
        x = x.detach()
    if x.dtype != torch.float32:
        x = x.float()
    return x.contiguous().numpy()


def noted(make: Callable[..., NDArray]) -> Callable[..., NDArray]:
    """Keeps what a function of a layout, and of numbers, gives."""

    @wraps(make)
    def found(layout: RowLayout, *numbers: float) -> NDArray:
        key = (make.__name__, *numbers)
        if key not in layout.notes:
            layout.notes[key] = make(layout, *numbers)
        return layout.notes[key]

    return found


@noted
def runs_view(layout: RowLayout) -> NDArray:
    """Per run: number of its kind, first channel, channels, first byte of its first plane and of
    its last one, and bits of these planes, 0 for none, (n, 7) int64."""
    found = []
    for run in layout.runs:
        first, last = run.planes[0].first_byte, run.planes[-1].first_byte
        bits = (*run.kind.planes, 0)[:2] if run.kind.coded else (0, 0)
        found.append((run.kind.number, run.first_channel, run.channels, first, last, *bits))
    return np.array(found, np.int64)


@noted
def coded_view(layout: RowLayout) -> NDArray:
    """`CODED` of the runs with a gain, (n,)."""
    coded = [run for run in layout.runs if run.kind.coded and layout.gain_byte is not None]
    return np.array(
        [
            (
                run.kind.number,
                run.first_channel,
                run.channels,
                levels.outermost_level(run.bits),
                levels.normal_distortion(run.bits),
            )
            for run in coded
        ],
        CODED,
    )


@noted
def shares_view(layout: RowLayout, key_rank: int, groups: int) -> NDArray:
    """First channel of the first group, and channels of each, in every run of the keys, (n, 2)
    int64; no rows where one group reads all of them."""
    if groups == 1:
        return np.empty((0, 2), np.int64)
    runs = layout.between(0, key_rank)
    return np.array([(run.first_channel, run.channels // groups) for run in runs], np.int64)


def read_form(read: LatentRead, rows: PagedRows) -> RowForm:
    """The form of rows that attention reads as latents."""
    key_up = read.key_up
    reading = row_reading(
        rows,
        groups=1 if key_up is None else key_up.weight.shape[0],
        rank=read.own_rank,
        first_value=rows.layout.num_channels - read.value_rank,
        value_rank=read.value_rank,
        window=read.window or 0,
        scale=read.scale,
        softcap=read.softcap or 0.0,
        epsilon=0.0 if key_up is None else key_up.norm_epsilon,
    )
    return _form(rows, shares_view(rows.layout, read.key_rank, read.key_heads), reading)


def exact_form(
    rows: PagedRows,
    num_heads: int,
    head_dim: int,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    limit: int | None,
) -> RowForm:
    """The form of exact rows: the keys of all heads before rotation, then the values.

    Args:
        scale, softcap: of scores, see `LatentRead`.
        window: slots that a query sees; None for all.
        limit: slots from here on hold no rows; None for none.
    """
    reading = row_reading(
        rows,
        groups=num_heads,
        rank=head_dim,
        first_value=num_heads * head_dim,
        value_rank=head_dim,
        value_share=head_dim,
        window=window or 0,
        scale=scale,
        softcap=softcap or 0.0,
    )
    if limit is not None:
        reading["limit"] = limit
    return _form(rows, np.array([[0, head_dim]]), reading)


def _form(rows: PagedRows, shares: NDArray, reading: NDArray) -> RowForm:
    return RowForm(runs_view(rows.layout), coded_view(rows.layout), shares, reading)


def row_reading(rows: PagedRows, **numbers: float) -> NDArray:
    """`READING`, (1,), of the numbers that do not follow from rows; 0 where none is given."""
    layout, found = rows.layout, np.zeros(1, READING)
    of_rows = {
        "limit": NO_LIMIT,
        "channels": layout.num_channels,
        "frame_bytes": rows.frame_bytes,
        "frame_tokens": rows.frame_tokens,
        "layer_offset": rows.layer_offset,
        "row_bytes": layout.row_bytes,
        "gain_byte": -1 if layout.gain_byte is None else layout.gain_byte,
        "after_gain": layout.after_gain,
        "only_floats": not any(run.kind.coded for run in layout.runs),
    }
    for name, number in (of_rows | numbers).items():
        found[name] = number
    return found
