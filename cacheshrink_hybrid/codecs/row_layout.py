"""Where the channels of a token lie in its row of bytes.

A row holds R channels as runs, back to back, each with one kind of number:

    float32               4 bytes per channel, at a multiple of 4 bytes
    float16, bfloat16     2 bytes per channel
    e4m3, e5m2            1 byte per channel: 8-bit floats
    uniform8              1 byte per channel: (code + 0.5) * 9/256 - 4.5
    levels1 to levels6    Lloyd-Max levels of 1 to 6 bits

then its gain, one byte, then zeros up to a multiple of the alignment. The kinds from uniform8 on
are *coded*: their levels are for channels of unit variance, and are multiplied by the row's gain
(`gains`), which also tells *lost* tokens: their latent was not finite, and reads as NaN in all
channels. Rows without gains have no such byte: coded channels are clipped to their levels, and
those of a token that is not finite read as numbers near 0.

Codes of a run of levels lie in *planes*, back to back: 3 bits are a plane of their 2 lower bits and
one of the highest, 5 bits one of 4 and one of 1, 6 bits one of 4 and one of 2. In a plane of n bits
a byte holds those of 8 / n neighbours, from the lowest bits up; its last byte is filled up with
zeros.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch

MAX_ALIGNMENT = 16
GAIN_BYTES = 1
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}
"""Bits of the planes that codes of each width lie in, the lowest bits first."""


class Kind(Enum):
    """Number format of a run: its number among them, bits of a channel, the name in torch of what
    is stored as it is, whether it is coded, and the bits of each plane, all bits where numbers lie
    whole. Coded kinds come last."""

    FLOAT32 = (0, 32, "float32")
    FLOAT16 = (1, 16, "float16")
    BFLOAT16 = (2, 16, "bfloat16")
    E4M3 = (3, 8, "float8_e4m3fn")
    E5M2 = (4, 8, "float8_e5m2")
    UNIFORM8 = (5, 8, None)
    LEVELS6 = (6, 6, None)
    LEVELS5 = (7, 5, None)
    LEVELS4 = (8, 4, None)
    LEVELS3 = (9, 3, None)
    LEVELS2 = (10, 2, None)
    LEVELS1 = (11, 1, None)

    def __init__(self, number: int, bits: int, float_name: str | None) -> None:
        self.number, self.bits, self.float_name = number, bits, float_name
        self.coded = float_name is None
        self.planes = PLANES.get(bits, (bits,))

    @property
    def dtype(self) -> torch.dtype:
        """Of a kind that is not coded."""
        import torch  # settings name kinds before there is a use for torch

        assert self.float_name is not None
        return getattr(torch, self.float_name)

    @staticmethod
    def of(dtype: torch.dtype) -> Kind | None:
        """The kind of numbers that are stored as they are; None if rows hold no such numbers."""
        name = str(dtype).removeprefix("torch.")
        return next((kind for kind in Kind if kind.float_name == name), None)


def plane_bytes(channels: int, bits: int) -> int:
    """Bytes of a plane of `bits` bits of so many channels."""
    return -(-channels * bits // 8)


def padded_row_bytes(run_bytes: int, *, has_gain: bool, alignment: int) -> int:
    """Length of a row whose runs take so many bytes."""
    return -(-(run_bytes + GAIN_BYTES * has_gain) // alignment) * alignment


@dataclass(frozen=True, slots=True)
class Plane:
    """Some bits of the codes of neighbouring channels: `bits` of each, from byte `first_byte`."""

    bits: int
    first_byte: int
    num_bytes: int

    @property
    def at_byte(self) -> slice:
        return slice(self.first_byte, self.first_byte + self.num_bytes)


@dataclass(frozen=True, slots=True)
class Run:
    """Where one run lies: `channels` channels from `first_channel`, in these planes."""

    kind: Kind
    first_channel: int
    channels: int
    planes: tuple[Plane, ...]

    @staticmethod
    def placed(kind: Kind, first_channel: int, channels: int, first_byte: int) -> Run:
        """A run whose planes lie back to back."""
        planes = []
        for bits in kind.planes:
            planes.append(Plane(bits, first_byte, plane_bytes(channels, bits)))
            first_byte += planes[-1].num_bytes
        return Run(kind, first_channel, channels, tuple(planes))

    @property
    def bits(self) -> int:
        return self.kind.bits

    @property
    def first_byte(self) -> int:
        return self.planes[0].first_byte

    @property
    def num_bytes(self) -> int:
        return sum(plane.num_bytes for plane in self.planes)

    @property
    def at_channel(self) -> slice:
        return slice(self.first_channel, self.first_channel + self.channels)

    @property
    def at_byte(self) -> slice:
        return slice(self.first_byte, self.first_byte + self.num_bytes)


@dataclass(frozen=True)
class RowLayout:
    """Where everything in a row lies.

    Attributes:
        runs: in channel order.
        row_bytes: length of a row, its padding included.
        gain_byte: where the gain is; None without gains.
    """

    runs: tuple[Run, ...]
    row_bytes: int
    gain_byte: int | None

    @cached_property
    def notes(self) -> dict[Hashable, Any]:
        """What was worked out of this layout, by whatever names it."""
        return {}

    @cached_property
    def num_channels(self) -> int:
        return sum(run.channels for run in self.runs)

    @cached_property
    def widths(self) -> frozenset[int]:
        """Bits of a channel that occur."""
        return frozenset(run.bits for run in self.runs)

    @property
    def after_runs(self) -> int:
        """Bytes of all runs."""
        return self.runs[-1].at_byte.stop

    @property
    def after_gain(self) -> int:
        """Bytes before the padding."""
        return self.after_runs + GAIN_BYTES * (self.gain_byte is not None)

    @cached_property
    def uses_tables(self) -> bool:
        """Whether reading takes tables of levels and gains."""
        return self.gain_byte is not None or any(run.kind.bits in PLANES for run in self.runs)

    @property
    def wide(self) -> bool:
        """Whether channels may pass the range of float16."""
        return any(run.kind in (Kind.FLOAT32, Kind.BFLOAT16) for run in self.runs)

    @staticmethod
    def of_runs(
        runs: Sequence[tuple[int, Kind]], *, alignment: int = 1, gains: bool = True
    ) -> RowLayout:
        """Layout of (channels, kind) in channel order.

        Args:
            alignment: rows are padded to a multiple of so many bytes, 16 at the most.
            gains: whether rows with coded runs have a gain.

        Raises:
            ConfigError: no run, or one without channels.
        """
        assert 1 <= alignment <= MAX_ALIGNMENT
        placed, channel, byte = [], 0, 0
        for channels, kind in runs:
            if channels < 1:
                raise ConfigError(f"a run of {channels} channels holds nothing; give at least one")
            placed.append(Run.placed(kind, channel, channels, byte))
            channel += channels
            byte += placed[-1].num_bytes
        if not placed:
            raise ConfigError("a row has no runs; give at least one of (channels, kind)")
        gain_byte = byte if gains and any(run.kind.coded for run in placed) else None
        row_bytes = padded_row_bytes(byte, has_gain=gain_byte is not None, alignment=alignment)
        return RowLayout(tuple(placed), row_bytes, gain_byte)

    def between(self, first: int, last: int) -> tuple[Run, ...]:
        """Runs of the channels [first, last), cut where needed.

        Raises:
            ConfigError: a cut within a byte.
        """
        runs = []
        for run in self.runs:
            start = max(first, run.first_channel)
            stop = min(last, run.at_channel.stop)
            if start >= stop:
                continue
            skipped = start - run.first_channel
            if any(skipped * plane.bits % 8 for plane in run.planes):
                raise ConfigError(
                    f"channels [{first}, {last}) begin within a byte of a run of {run.kind.name}; "
                    f"cut runs at multiples of {8 // min(run.kind.planes)} channels"
                )
            planes = tuple(
                Plane(
                    plane.bits,
                    plane.first_byte + skipped * plane.bits // 8,
                    plane_bytes(stop - start, plane.bits),
                )
                for plane in run.planes
            )
            runs.append(Run(run.kind, start, stop - start, planes))
        return tuple(runs)
