"""What compiled functions know of rows and of how they are read: arrays of numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ....codecs import levels
from ....codecs.gains import gain_table
from ....codecs.row_layout import PLANES, Kind, RowLayout
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
                "only_floats",
            )
        ),
        ("scale", np.float32),
        ("softcap", np.float32),
        ("epsilon", np.float32),
    ]
)
"""How rows are read.

groups: of query heads that meet keys of their own; rank: channels of such a group's keys.
first_value, value_rank, value_share: first channel that is mixed, how many, and how many channels
    further those of the next group lie.
window: 0 for none. limit: slots from here on are none. channels: of a row. gain_byte: -1 for none.
only_floats: no channel is coded, so that a lost token is NaN in all.
softcap: 0 for none.
"""


NO_LIMIT = 2**62

PLACE = np.dtype(
    [
        (name, np.int64)
        for name in (
            "frame_bytes",
            "frame_tokens",
            "layer_offset",
            "row_bytes",
            "gain_byte",
            "after_gain",
        )
    ]
)
"""Where rows are written; gain_byte: -1 for none, after_gain: bytes before the padding."""

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


class Tables(NamedTuple):
    """What is looked up: levels of 1 to 6 bits of two neighbours (5460, 2), numbers of the bytes of
    e4m3 and e5m2 (2, 256), step and first level of 8 uniform bits (2,), and gains (256,)."""

    pairs: NDArray
    byte_floats: NDArray
    uniform: NDArray
    gains: NDArray


@cache
def row_tables() -> Tables:
    pairs = []
    for bits, planes in PLANES.items():
        low = planes[0]
        index, level = torch.arange(4**bits), levels.levels_of(bits).float()
        lows, highs = index % 4**low, index >> (2 * low)
        codes = [
            (lows >> low * k) % 2**low + ((highs >> (bits - low) * k) % 2 ** (bits - low) << low)
            for k in range(2)
        ]
        pairs.append(level[torch.stack(codes, dim=-1)])
    every_byte = torch.arange(256, dtype=torch.uint8)
    floats = [every_byte.view(kind.dtype).float() for kind in (Kind.E4M3, Kind.E5M2)]
    uniform = levels.UNIFORM_STEP, float(levels.uniform_levels()[0])
    return Tables(
        torch.cat(pairs).numpy(),
        torch.stack(floats).numpy(),
        np.array(uniform, np.float32),
        gain_table(torch.device("cpu")).numpy(),
    )


class ExactRows(NamedTuple):
    """Exact rows of one kind: slots of new ones, (B * T,); `frame_table` and `sequences` of
    `read_block`; how they are written: `runs_view`, `planes_view`, `CODED` and `PLACE`; how they
    are read: shares of the heads, `READING`, and bias, cos and sin of the keys."""

    slots: NDArray
    frame_table: NDArray
    sequences: NDArray
    runs: NDArray
    planes: NDArray
    coded: NDArray
    place: NDArray
    shares: NDArray
    reading: NDArray
    bias: NDArray
    cos: NDArray
    sin: NDArray


class CodingTables(NamedTuple):
    """What is looked up to code: the code of the step that a number lies in, by width, (6, 4096)
    uint8; levels of 1 to 6 and of 8 uniform bits, (7, 256); and gains (256,)."""

    step_codes: NDArray
    levels: NDArray
    gains: NDArray


@cache
def coding_tables() -> CodingTables:
    # Uniform levels come behind those of 6 bits, as their kind does.
    found = np.zeros((len(PLANES) + 1, 256), np.float32)
    for row, bits in enumerate((*PLANES, levels.UNIFORM_BITS)):
        found[row, : 2**bits] = levels.levels_of(bits)
    return CodingTables(
        torch.stack([levels.step_codes(bits) for bits in PLANES]).numpy(),
        found,
        gain_table(torch.device("cpu")).numpy(),
    )


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
    its last one, (n, 5) int64."""
    return np.array(
        [
            (
                run.kind.number,
                run.first_channel,
                run.channels,
                run.planes[0].first_byte,
                run.planes[-1].first_byte,
            )
            for run in layout.runs
        ],
        np.int64,
    )


@noted
def planes_view(layout: RowLayout) -> NDArray:
    """Bits of each run's planes, 0 for none, (n, 2) int64."""
    planes = [(*run.kind.planes, 0)[:2] if run.kind.coded else (0, 0) for run in layout.runs]
    return np.array(planes, np.int64)


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


def place_view(rows: PagedRows) -> NDArray:
    """`PLACE` of a layer's rows, (1,)."""
    return _place_view(rows.layout, rows.frame_bytes, rows.frame_tokens, rows.layer_offset)


@noted
def _place_view(layout: RowLayout, frame_bytes: int, frame_tokens: int, offset: int) -> NDArray:
    gain_byte = -1 if layout.gain_byte is None else layout.gain_byte
    sizes = frame_bytes, frame_tokens, offset, layout.row_bytes, gain_byte, layout.after_gain
    return np.array([sizes], PLACE)


@noted
def shares_view(layout: RowLayout, key_rank: int, groups: int) -> NDArray:
    """First channel of the first group, and channels of each, in every run of the keys, (n, 2)
    int64; no rows where one group reads all of them."""
    if groups == 1:
        return np.empty((0, 2), np.int64)
    runs = layout.between(0, key_rank)
    return np.array([(run.first_channel, run.channels // groups) for run in runs], np.int64)


def reading_view(read: LatentRead, rows: PagedRows) -> NDArray:
    """`READING` of what attention does with the latents of a layer, (1,)."""
    key_up = read.key_up
    return reading_of(
        rows.layout,
        1 if key_up is None else key_up.weight.shape[0],
        read.own_rank,
        rows.layout.num_channels - read.value_rank,
        read.value_rank,
        0,
        read.window or 0,
        NO_LIMIT,
        rows.frame_bytes,
        rows.frame_tokens,
        rows.layer_offset,
        read.scale,
        read.softcap or 0.0,
        0.0 if key_up is None else key_up.norm_epsilon,
    )


@noted
def reading_of(layout: RowLayout, *numbers: float) -> NDArray:
    """`READING`, (1,), of what of it does not follow from a layout, in its order."""
    before, place, score = numbers[:7], numbers[7:10], numbers[10:]
    gain_byte = -1 if layout.gain_byte is None else layout.gain_byte
    coded = any(run.kind.coded for run in layout.runs)
    found = *before, layout.num_channels, *place, layout.row_bytes, gain_byte, not coded, *score
    return np.array([found], READING)
