"""How the row of one token lies in memory, as kernels need to know it.

A row holds R channels as runs, back to back, each run with one kind of number:

    float32               4 bytes per channel, at a multiple of 4 bytes
    float16, bfloat16     2 bytes per channel
    e4m3, e5m2            1 byte per channel
    uniform8              1 byte per channel: (code + 0.5) * 9/256 - 4.5
    levels4, levels2      codes of tabulated levels, packed from the lowest bits of a byte up,
                          neighbouring channels in one byte

uniform8, levels4 and levels2 are *coded*: their values are multiplied by the token's gain. It lies
in the head byte, which is the first byte of the first uniform8 run, or one byte behind the last run
if there is none. It stands for a gain and for the value of the first uniform8 channel, see
`FIRST_ESCAPED`. One head code marks a *lost* token, whose latent was not finite; it reads as NaN in
all channels. Rows without gains have no head byte: coded channels are clipped to their levels, and
those of a token that is not finite read as numbers near 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from ...errors import ConfigError

UNIFORM_CLIP = 4.5
MAX_ALIGNMENT = 16
UNIFORM_STEP = 2 * UNIFORM_CLIP / 256


class Kind(IntEnum):
    """Number format of a run. Coded kinds come last."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    E4M3 = 3
    E5M2 = 4
    UNIFORM8 = 5
    LEVELS4 = 6
    LEVELS2 = 7

    @property
    def bits(self) -> int:
        return (32, 16, 16, 8, 8, 8, 4, 2)[self]

    @property
    def coded(self) -> bool:
        return self >= Kind.UNIFORM8

    @property
    def unit(self) -> float:
        """What the numbers that kernels multiply with are counted in."""
        return UNIFORM_STEP if self is Kind.UNIFORM8 else 1.0


KIND_OF_BITS = {16: Kind.FLOAT16, 8: Kind.UNIFORM8, 4: Kind.LEVELS4, 2: Kind.LEVELS2}
KIND_OF_DTYPE = {
    torch.float32: Kind.FLOAT32,
    torch.float16: Kind.FLOAT16,
    torch.bfloat16: Kind.BFLOAT16,
    torch.float8_e4m3fn: Kind.E4M3,
    torch.float8_e5m2: Kind.E5M2,
}
DTYPE_OF_KIND = {kind: dtype for dtype, kind in KIND_OF_DTYPE.items()}


@dataclass(frozen=True, slots=True)
class RowRun:
    """`channels` channels from `first_channel`, bytes from `first_byte`."""

    kind: Kind
    first_channel: int
    channels: int
    first_byte: int

    @property
    def num_bytes(self) -> int:
        return self.channels * self.kind.bits // 8


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Runs of a row, its length in bytes, and where its head byte is (None without gains).

    `head_channel` is the channel that the head byte also codes, None if it codes a gain only.
    """

    runs: tuple[RowRun, ...]
    row_bytes: int
    head_byte: int | None
    head_channel: int | None

    @property
    def num_channels(self) -> int:
        return sum(run.channels for run in self.runs)

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
        runs: Sequence[tuple[int, Kind]], *, alignment: int = 1, gains: bool = True
    ) -> RowLayout:
        """Layout of (channels, kind) in channel order; rows are padded to `alignment` bytes.
        Without `gains`, coded runs have none.

        Raises:
            ConfigError: no run, or one that does not fill whole bytes.
        """
        if not 1 <= alignment <= MAX_ALIGNMENT:
            raise ConfigError(f"alignment={alignment} must be in [1, {MAX_ALIGNMENT}] bytes")
        placed, channel, byte = [], 0, 0
        for channels, kind in runs:
            if channels < 1 or channels * kind.bits % 8:
                raise ConfigError(f"a run of {channels} channels of {kind.name} fills no bytes")
            placed.append(RowRun(kind, channel, channels, byte))
            channel += channels
            byte += channels * kind.bits // 8
        if not placed:
            raise ConfigError("a row has no runs; give at least one (channels, kind)")
        head_byte = head_channel = None
        if gains and any(run.kind.coded for run in placed):
            first = next((run for run in placed if run.kind is Kind.UNIFORM8), None)
            head_byte = byte if first is None else first.first_byte
            head_channel = None if first is None else first.first_channel
            byte += first is None
        row_bytes = -(-byte // alignment) * alignment
        return RowLayout(tuple(placed), row_bytes, head_byte, head_channel)

    @staticmethod
    def of_bits(
        runs: Sequence[tuple[int, int]], *, alignment: int = 1, gains: bool = True
    ) -> RowLayout:
        """Layout of (channels, bits), bits in {16, 8, 4, 2}: float16 and coded runs."""
        unknown = sorted({bits for _, bits in runs} - set(KIND_OF_BITS))
        if unknown:
            raise ConfigError(f"runs of {unknown} bits; allowed are {sorted(KIND_OF_BITS)}")
        kinds = [(channels, KIND_OF_BITS[bits]) for channels, bits in runs]
        return RowLayout.of_runs(kinds, alignment=alignment, gains=gains)

    @staticmethod
    def uniform(channels: int, dtype: torch.dtype, *, alignment: int = 1) -> RowLayout:
        """Layout of rows that hold all channels in one float type of 32, 16 or 8 bits."""
        if dtype not in KIND_OF_DTYPE:
            raise ConfigError(f"rows of {dtype}; allowed are {list(KIND_OF_DTYPE)}")
        return RowLayout.of_runs([(channels, KIND_OF_DTYPE[dtype])], alignment=alignment)

    def between(self, first: int, last: int) -> tuple[RowRun, ...]:
        """Runs of the channels [first, last), cut where needed.

        Raises:
            ConfigError: a cut within a byte.
        """
        runs = []
        for run in self.runs:
            start = max(first, run.first_channel)
            stop = min(last, run.first_channel + run.channels)
            if start >= stop:
                continue
            skipped_bits = (start - run.first_channel) * run.kind.bits
            if skipped_bits % 8 or (stop - start) * run.kind.bits % 8:
                raise ConfigError(
                    f"channels [{first}, {last}) begin or end within a byte of a run of "
                    f"{run.kind.name}; cut runs at multiples of {8 // run.kind.bits} channels"
                )
            byte = run.first_byte + skipped_bits // 8
            runs.append(RowRun(run.kind, start, stop - start, byte))
        return tuple(runs)


FIRST_ESCAPED = 159
ESCAPED_LEVELS = 16
MAX_GAIN_EXPONENT = 6
LOST = 255
"""Head bytes: 159 levels of the head channel at gain 1, 16 for each of the gains 2, 4, .. 64, and
the code of lost tokens. The levels lie evenly between -4.5 and 4.5, times the gain."""

FIRST_LEVELS2 = 16
LEVELS_SIZE = 20


def row_levels(levels4: Tensor, levels2: Tensor) -> Tensor:
    """Levels of 4 bits and of 2 bits, each ascending, as the float32 tensor (20,) that kernels
    take.

    Raises:
        ConfigError: another number of levels.
    """
    if (levels4.numel(), levels2.numel()) != (16, 4):
        raise ConfigError(
            f"got {levels4.numel()} levels for 4 bits and {levels2.numel()} for 2; due are 16 and 4"
        )
    return torch.cat([levels4.float(), levels2.float()])
