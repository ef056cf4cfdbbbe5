"""What programs fetch of a row, worked out from the pieces that they read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import PLANES, Kind, RowLayout, Run
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.kernels.latents.pieces import Piece, num_pieces, pieces_of, stretches_of

SECTOR_BYTES = 32
"""What a GPU's caches fetch at least."""


def _bits(piece: Piece, head: int) -> Iterator[int]:
    """Bits of a row that the program of a head reads for a piece."""
    for plane in piece.planes:
        first = 8 * plane.first_byte + head * piece.share * plane.bits
        yield from range(first, first + piece.valid * plane.bits)


def _sectors(pieces: tuple[Piece, ...], num_heads: int) -> int:
    """Sectors of an aligned row that the programs of all heads fetch."""
    return sum(
        len({bit // 8 // SECTOR_BYTES for piece in pieces for bit in _bits(piece, head)})
        for head in range(num_heads)
    )


def _pieces(layout: RowLayout, key_rank: int, num_heads: int) -> tuple[Piece, ...]:
    values = (key_rank, layout.num_channels)
    return pieces_of(layout, keys=(0, key_rank), values=values, key_heads=num_heads)


def test_a_head_fetches_its_own_keys_only() -> None:
    """8 heads of 64 channels and 256 of values, 8 bits each. If neighbours in a row belonged to
    other heads, each program would fetch all of a row: 2.45 times as much."""
    layout = RowFormat(alignment=16).layout([(8 * 64, 8), (256, 8)])
    fetched = SECTOR_BYTES * _sectors(_pieces(layout, 8 * 64, 8), 8)
    assert fetched == 8 * (64 + 256)
    assert 8 * layout.row_bytes / fetched == pytest.approx(2.45)


@pytest.mark.parametrize("num_heads", [2, 4, 8])
def test_mixed_widths(num_heads: int) -> None:
    """A head's share of a plane is one stretch of bytes, which reaches into one sector more than it
    fills at the most; in step with the other heads it would lie in all sectors of the plane."""
    shares = ((16, 16), (32, 8), (16, 5), (8, 2))
    runs = [(num_heads * channels, bits) for channels, bits in shares]
    key_rank = sum(channels for channels, _ in runs)
    layout = RowFormat(alignment=16).layout([*runs, (64, 8)])
    keys = tuple(piece for piece in _pieces(layout, key_rank, num_heads) if piece.share)
    planes = [channels * bits for channels, width in shares for bits in PLANES.get(width, (width,))]
    most = sum(-(-bits // 8 // SECTOR_BYTES) + 1 for bits in planes)
    assert _sectors(keys, num_heads) <= num_heads * most
    in_step = -(-sum(channels * bits // 8 for channels, bits in runs) // SECTOR_BYTES)
    assert num_heads < 8 or 2.5 * _sectors(keys, num_heads) < num_heads * in_step


@pytest.mark.parametrize(
    "runs", [[(24, 16), (48, 8), (24, 4)], [(6, 4), (12, 2), (48, 5), (30, 8)], [(420, 8)]], ids=str
)
def test_pieces_of_all_heads_are_the_keys(runs: list[tuple[int, int]]) -> None:
    """Heads read every bit of the keys, none of them twice, and each its channels in order."""
    num_heads = 3
    key_rank = sum(channels for channels, _ in runs)
    layout = RowFormat().layout([*runs, (16, 8)])
    keys = [piece for piece in _pieces(layout, key_rank, num_heads) if piece.share]
    read = [bit for head in range(num_heads) for piece in keys for bit in _bits(piece, head)]
    assert sorted(read) == list(range(sum(channels * bits for channels, bits in runs)))
    channel = 0
    for piece in keys:
        assert piece.key_channel == channel
        channel += piece.valid
    assert channel == key_rank // num_heads


def test_keys_of_single_heads_are_no_values() -> None:
    layout = RowLayout.of_runs([(64, Kind.FLOAT16)])
    with pytest.raises(ConfigError, match="cannot be values as well"):
        pieces_of(layout, keys=(0, 64), values=(0, 64), key_heads=2)
    with pytest.raises(ConfigError, match="not shared evenly by 3 heads"):
        pieces_of(layout, keys=(0, 32), values=(32, 64), key_heads=3)


@pytest.mark.parametrize("first", [0, 48])
def test_stretches_are_the_channels(first: int) -> None:
    """Whole pieces of each run and what is left of it, every bit once, channels in order."""
    runs = [(48, 16), (384, 5), (300, 3), (136, 8), (4, 1)]
    layout = RowFormat().layout(runs)
    stretches = stretches_of(layout, first, layout.num_channels)
    assert [stretch.count for stretch in stretches] == [1, 3, 2, 1, 1, 1, 1][first > 0 :]
    read, channel, number = [], 0, 0
    for stretch in stretches:
        piece = stretch.piece
        assert (stretch.channel, stretch.first) == (channel, number)
        assert piece.width == piece.share >= piece.valid
        assert stretch.count == 1 or piece.width == piece.valid
        for at in range(stretch.count):
            read += _bits(piece, at)
        channel += stretch.count * piece.valid
        number += stretch.count
    assert channel == layout.num_channels - first and number == num_pieces(stretches)
    bits = {bit for run in layout.between(first, channel + first) for bit in _bits_of_run(run)}
    assert sorted(read) == sorted(bits)


def _bits_of_run(run: Run) -> Iterator[int]:
    for plane in run.planes:
        yield from range(8 * plane.first_byte, 8 * plane.first_byte + run.channels * plane.bits)
