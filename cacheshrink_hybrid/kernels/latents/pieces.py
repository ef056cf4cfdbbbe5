"""Runs of a row, cut into tiles for kernels.

A *piece* is a run, or a part of one, whose number of channels is padded to a power of two, because
tiles of Triton are. A *stretch* is as many pieces as a run has side by side. Kernels take both for
constants: of pieces they hold all at once, stretches they walk along.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from ...codecs import levels
from ...codecs.row_layout import Kind, Plane, RowLayout, Run
from ...errors import ConfigError
from .paged_rows import PagedRows

MIN_WIDTH = 16  # tl.dot multiplies no less
MAX_WIDTH = 128


@dataclass(frozen=True, slots=True)
class FramedRows:
    """How rows lie in frames, as a kernel takes it for a constant; no gain is at byte -1."""

    row_bytes: int
    frame_bytes: int
    frame_tokens: int
    gain_byte: int
    even: bool

    @staticmethod
    def of(rows: PagedRows) -> FramedRows:
        gain_byte = -1 if rows.layout.gain_byte is None else rows.layout.gain_byte
        return FramedRows(
            rows.layout.row_bytes, rows.frame_bytes, rows.frame_tokens, gain_byte, rows.even
        )


@dataclass(frozen=True, slots=True)
class Levels:
    """Levels of a width, as a kernel takes them for a constant.

    Attributes:
        first: where they begin in `row_tables`.
        first_step: where their steps begin in `step_tables`.
        outermost: the largest one.
        distortion: of a standard normal channel.
    """

    first: int
    first_step: int
    outermost: float
    distortion: float

    @staticmethod
    @cache
    def of(kind: Kind) -> Levels:
        """Those of a coded kind; uniform ones are in no table."""
        bits, in_tables = kind.bits, kind is not Kind.UNIFORM8
        return Levels(
            levels.first_level(bits) if in_tables else 0,
            levels.first_step(bits) if in_tables else 0,
            levels.outermost_level(bits),
            levels.normal_distortion(bits),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run, or a part of one, as a kernel takes it for a constant.

    Attributes:
        kind: number of its `Kind`.
        width: of its tile.
        valid: channels that are not padding.
        planes: where its bits lie in a row.
        levels: those of its codes; None for floats.
        unit: what its numbers are counted in.
        is_key, key_channel, key_index: whether it is read as keys, its first channel among them,
            and its index among their pieces.
        is_value, value_channel, value_index: the same of values.
        share: from one head to the next in channels of the row, 0 for what all heads read. Where
            heads have keys of their own, a piece is that of head 0. In a stretch, from one piece to
            the next.
    """

    kind: int
    width: int
    valid: int
    planes: tuple[Plane, ...]
    levels: Levels | None
    unit: float
    is_key: bool
    key_channel: int
    key_index: int
    is_value: bool
    value_channel: int
    value_index: int
    share: int

    @property
    def coded(self) -> bool:
        """Whether gains apply."""
        return self.levels is not None


@cache
def pieces_of(
    layout: RowLayout, *, keys: tuple[int, int], values: tuple[int, int], key_heads: int = 1
) -> tuple[Piece, ...]:
    """Pieces of the channels that serve as keys, values, or both.

    Args:
        layout: what a row holds.
        keys: first channel of the keys, and the one behind the last.
        values: the same of the values.
        key_heads: J, if heads have keys of their own: each run of keys then holds equally many
            channels of head 0, of head 1, and so on, and keys are no values.

    Raises:
        ConfigError: runs that do not hold equally many channels of every head.
    """
    cuts = sorted({*keys, *values})
    pieces: list[Piece] = []
    counts = {"keys": 0, "values": 0}
    for first, last in pairwise(cuts):
        is_key = keys[0] <= first < keys[1]
        is_value = values[0] <= first < values[1]
        if not is_key and not is_value:
            continue
        heads = key_heads if is_key else 1
        if heads > 1 and is_value:
            raise ConfigError("channels of single heads' keys cannot be values as well")
        for run in layout.between(first, last):
            if run.channels % heads:
                raise ConfigError(
                    f"a run of {run.channels} key channels is not shared evenly by {heads} heads"
                )
            share = run.channels // heads
            before = (run.first_channel - keys[0]) // heads  # of a head's key channels
            for skipped, width, valid in _powers_of_two(share):
                channel = run.first_channel + skipped
                pieces.append(
                    Piece(
                        **_numbers(run, skipped, width, valid),
                        is_key=is_key,
                        key_channel=before + skipped,
                        key_index=counts["keys"],
                        is_value=is_value,
                        value_channel=channel - values[0],
                        value_index=counts["values"],
                        share=share if heads > 1 else 0,
                    )
                )
                counts["keys"] += is_key
                counts["values"] += is_value
    return tuple(pieces)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pieces of one run side by side, as a kernel takes them for a constant.

    Attributes:
        piece: the first of them.
        count: of pieces, each `piece.share` channels behind the one before.
        channel: first one, among those that are cut.
        first: number of the first piece, among those of all stretches.
    """

    piece: Piece
    count: int
    channel: int
    first: int


@cache
def stretches_of(layout: RowLayout, first: int, last: int) -> tuple[Stretch, ...]:
    """The channels [first, last) in pieces of `MAX_WIDTH`, and what is left of each run in one."""
    found: list[Stretch] = []
    number = 0
    for run in layout.between(first, last):
        whole, left = divmod(run.channels, MAX_WIDTH)
        for skipped, valid, count in ((0, MAX_WIDTH, whole), (whole * MAX_WIDTH, left, left > 0)):
            if not count:
                continue
            width = max(MIN_WIDTH, 1 << (valid - 1).bit_length())
            piece = Piece(
                **_numbers(run, skipped, width, valid),
                is_key=False,
                key_channel=0,
                key_index=0,
                is_value=False,
                value_channel=0,
                value_index=0,
                share=width,
            )
            channel = run.first_channel + skipped - first
            found.append(Stretch(piece, int(count), channel, number))
            number += count
    return tuple(found)


def num_pieces(stretches: tuple[Stretch, ...]) -> int:
    return sum(stretch.count for stretch in stretches)


def own_stretches(layout: RowLayout, key_rank: int, key_heads: int) -> tuple[Stretch, ...]:
    """The key channels of head 0, where heads have channels of their own: a stretch for each piece,
    since those of other heads lie between them."""
    pieces = pieces_of(layout, keys=(0, key_rank), values=(0, 0), key_heads=key_heads)
    return tuple(Stretch(piece, 1, piece.key_channel, i) for i, piece in enumerate(pieces))


def _numbers(run: Run, skipped: int, width: int, valid: int) -> dict[str, Any]:
    """What a piece holds, `skipped` channels behind the first of its run."""
    return {
        "kind": run.kind.number,
        "width": width,
        "valid": valid,
        "planes": _part_of_planes(run, skipped, valid),
        "levels": Levels.of(run.kind) if run.kind.coded else None,
        "unit": levels.UNIFORM_STEP if run.kind is Kind.UNIFORM8 else 1.0,
    }


def _part_of_planes(run: Run, skipped: int, channels: int) -> tuple[Plane, ...]:
    """Where `channels` channels of a run lie, `skipped` behind its first one, a multiple of 8."""
    return tuple(
        Plane(
            plane.bits, plane.first_byte + skipped * plane.bits // 8, -(-channels * plane.bits // 8)
        )
        for plane in run.planes
    )


def _powers_of_two(channels: int) -> Iterator[tuple[int, int, int]]:
    """(channels before, width, channels that are not padding) of the pieces of a run."""
    done = 0
    while done < channels:
        left = channels - done
        width = MAX_WIDTH
        while width > max(left, MIN_WIDTH):
            width //= 2
        valid = min(width, left)
        yield done, width, valid
        done += valid
