"""Where the channels of a token lie in its row of bytes.

A row holds R channels as runs, back to back, each with one kind of number:

    float32               4 bytes per channel, at a multiple of 4 bytes
    float16, bfloat16     2 bytes per channel
    e4m3, e5m2            1 byte per channel: 8-bit floats
    uniform8              1 byte per channel: (code + 0.5) * 9/256 - 4.5
    levels4               Lloyd-Max levels; byte j holds channels 2j (low bits) and 2j + 1
    levels2               Lloyd-Max levels; byte j holds channels 4j (lowest bits) to 4j + 3

then what scales the levels, then zeros up to a multiple of the alignment. The last three kinds are
*coded*: their levels are for channels of unit variance, and have a limited reach.

With static scales, tokens that reach further are divided by a gain, a power of two. It hides in the
row's head byte, which is the first byte of the first uniform8 run, or one byte behind the last run
if there is none. A head byte stands for a gain and for the value of the first uniform8 channel (see
`levels.HEAD_LEVELS`), or says that the token is *lost*: its latent was not finite, and reads as NaN
in all channels. Rows without gains have no head byte: coded channels are clipped to their levels,
and those of a token that is not finite read as numbers near 0. With a scale per token there are no
gains: every width that is coded has a float16 scale behind the runs, widest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch

MAX_ALIGNMENT = 16
SCALE_BYTES = 2


class Kind(Enum):
    """Number format of a run: its number among them, bits of a channel, and the name in torch of
    what is stored as it is. Coded kinds come last."""

    FLOAT32 = (0, 32, "float32")
    FLOAT16 = (1, 16, "float16")
    BFLOAT16 = (2, 16, "bfloat16")
    E4M3 = (3, 8, "float8_e4m3fn")
    E5M2 = (4, 8, "float8_e5m2")
    UNIFORM8 = (5, 8, None)
    LEVELS4 = (6, 4, None)
    LEVELS2 = (7, 2, None)

    def __init__(self, number: int, bits: int, float_name: str | None) -> None:
        self.number, self.bits, self.float_name = number, bits, float_name

    @property
    def coded(self) -> bool:
        return self.float_name is None

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


@dataclass(frozen=True, slots=True)
class Run:
    """Where one run lies: `channels` channels from `first_channel`, bytes from `first_byte`."""

    kind: Kind
    first_channel: int
    channels: int
    first_byte: int

    @property
    def bits(self) -> int:
        return self.kind.bits

    @property
    def num_bytes(self) -> int:
        return self.channels * self.bits // 8

    @property
    def at_channel(self) -> slice:
        return slice(self.first_channel, self.first_channel + self.channels)

    @property
    def at_byte(self) -> slice:
        return slice(self.first_byte, self.first_byte + self.num_bytes)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where everything in a row lies.

    Attributes:
        runs: in channel order.
        row_bytes: length of a row, its padding included.
        head_byte: where the head byte is; None without gains.
        head_channel: the channel that the head byte also codes; None if it codes a gain only.
        scaled_widths: bits of the runs that have a scale per token, in the order of the scales.
    """

    runs: tuple[Run, ...]
    row_bytes: int
    head_byte: int | None
    head_channel: int | None
    scaled_widths: tuple[int, ...] = ()

    @property
    def num_channels(self) -> int:
        return sum(run.channels for run in self.runs)

    @property
    def after_runs(self) -> int:
        """Bytes of all runs."""
        return self.runs[-1].at_byte.stop

    @property
    def after_scales(self) -> int:
        """Bytes before the padding."""
        own_head = self.head_byte == self.after_runs
        return self.after_runs + own_head + SCALE_BYTES * len(self.scaled_widths)

    @property
    def uses_tables(self) -> bool:
        """Whether reading takes tables of levels."""
        return any(run.kind in (Kind.LEVELS4, Kind.LEVELS2) for run in self.runs)

    @property
    def wide(self) -> bool:
        """Whether channels may pass the range of float16."""
        return any(run.kind in (Kind.FLOAT32, Kind.BFLOAT16) for run in self.runs)

    @staticmethod
    def of_runs(
        runs: Sequence[tuple[int, Kind]],
        *,
        alignment: int = 1,
        gains: bool = True,
        token_scales: bool = False,
    ) -> RowLayout:
        """Layout of (channels, kind) in channel order.

        Args:
            alignment: rows are padded to a multiple of so many bytes, 16 at the most.
            gains: whether coded runs have them.
            token_scales: whether they have a scale per token and width in their place.

        Raises:
            ConfigError: no run, or one that does not fill whole bytes.
        """
        assert 1 <= alignment <= MAX_ALIGNMENT
        placed, channel, byte = [], 0, 0
        for channels, kind in runs:
            if channels < 1 or channels * kind.bits % 8:
                raise ConfigError(
                    f"a run of {channels} channels of {kind.bits} bits fills no bytes"
                )
            placed.append(Run(kind, channel, channels, byte))
            channel += channels
            byte += placed[-1].num_bytes
        if not placed:
            raise ConfigError("a row has no runs; give at least one of (channels, kind)")
        coded = [run for run in placed if run.kind.coded]
        head_byte = head_channel = None
        scaled: tuple[int, ...] = ()
        if token_scales:
            scaled = tuple(sorted({run.bits for run in coded}, reverse=True))
            byte += SCALE_BYTES * len(scaled)
        elif gains and coded:
            first = next((run for run in coded if run.kind is Kind.UNIFORM8), None)
            head_byte = byte if first is None else first.first_byte
            head_channel = None if first is None else first.first_channel
            byte += first is None
        row_bytes = -(-byte // alignment) * alignment
        return RowLayout(tuple(placed), row_bytes, head_byte, head_channel, scaled)

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
            skipped_bits = (start - run.first_channel) * run.bits
            if skipped_bits % 8 or (stop - start) * run.bits % 8:
                raise ConfigError(
                    f"channels [{first}, {last}) begin or end within a byte of a run of "
                    f"{run.kind.name}; cut runs at multiples of {8 // run.bits} channels"
                )
            runs.append(Run(run.kind, start, stop - start, run.first_byte + skipped_bits // 8))
        return tuple(runs)
