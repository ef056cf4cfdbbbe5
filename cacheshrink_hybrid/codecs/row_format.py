"""Settings of rows of bytes, and the layout of runs under them (`row_layout` draws a row)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .names import BYTE_FORMATS, HALF_FORMATS
from .row_layout import (
    MAX_ALIGNMENT,
    PLANES,
    Kind,
    RowLayout,
    padded_row_bytes,
    plane_bytes,
)

KIND_OF_HALF = dict(zip(HALF_FORMATS, (Kind.FLOAT16, Kind.BFLOAT16), strict=True))
KIND_OF_BYTE = dict(zip(BYTE_FORMATS, (Kind.UNIFORM8, Kind.E4M3, Kind.E5M2), strict=True))
KIND_OF_LEVELS = {kind.bits: kind for kind in Kind if kind.bits in PLANES}
WIDTHS = (16, 8, *KIND_OF_LEVELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """Everything about a row but its runs.

    Attributes:
        gains: whether a row with coded channels has a gain. Narrow rows, where a byte is much, may
            go without.
        half: number format of 16-bit channels, `float16` or `bfloat16`.
        byte: what 8-bit channels hold: `uniform` levels, or floats `e4m3` or `e5m2`.
        alignment: rows are a multiple of this many bytes, 16 at the most.

    Raises:
        ConfigError: for anything else.
    """

    gains: bool = True
    half: str = "float16"
    byte: str = "uniform"
    alignment: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("half", HALF_FORMATS), ("byte", BYTE_FORMATS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}"
                )
        if not 1 <= self.alignment <= MAX_ALIGNMENT:
            raise ConfigError(f"alignment={self.alignment} must be in [1, {MAX_ALIGNMENT}] bytes")

    def kind(self, bits: int) -> Kind:
        """What runs of a width hold.

        Raises:
            ConfigError: a width that is none of `WIDTHS`.
        """
        if bits not in WIDTHS:
            raise ConfigError(f"a run of {bits} bits cannot be stored; one of {WIDTHS} is due")
        if bits == 16:
            return KIND_OF_HALF[self.half]
        if bits == 8:
            return KIND_OF_BYTE[self.byte]
        return KIND_OF_LEVELS[bits]

    def layout(self, runs: Sequence[tuple[int, int]]) -> RowLayout:
        """Layout of (channels, bits) in channel order.

        Raises:
            ConfigError: a width that is none of `WIDTHS`, or a run without channels.
        """
        return RowLayout.of_runs(
            [(channels, self.kind(bits)) for channels, bits in runs],
            alignment=self.alignment,
            gains=self.gains,
        )

    def row_bytes(self, runs: Sequence[tuple[int, int]], parts: int = 1) -> int:
        """Bytes of a row of these (channels, bits), without drawing it.

        Args:
            parts: rows that hold equal shares of each run, each with a gain and padding of its own.
        """
        kinds = [(channels // parts, self.kind(bits)) for channels, bits in runs]
        return parts * padded_row_bytes(
            sum(plane_bytes(channels, bits) for channels, kind in kinds for bits in kind.planes),
            has_gain=self.gains and any(kind.coded for _, kind in kinds),
            alignment=self.alignment,
        )
