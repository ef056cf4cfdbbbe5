"""How a token's latent is written as bytes: the layout that codecs, plans and kernels share.

A row is a sequence of runs, each with one width for its channels:

    16 bits   a half-precision number per channel
     8 bits   one byte per channel: uniform levels, or an 8-bit float
     4 bits   Lloyd-Max levels; byte j holds channels 2j (low bits) and 2j + 1
     2 bits   Lloyd-Max levels; byte j holds channels 4j (lowest bits) to 4j + 3

then what scales the levels, then zeros up to a multiple of the alignment. Levels are for channels
of unit variance. With `static` scales nothing is stored per channel or token, except that tokens
which reach further than the levels are divided by a gain, a power of two. The gain hides in the
row's head byte, which codes the first 8-bit channel with 159 of its 256 codes and leaves the others
to gains; rows without an 8-bit run have one more byte for it. Narrow rows, where a byte is much,
may go without gains; what reaches further than the levels is then clipped. With `token` scales
every width that uses levels has a float16 scale per token, widest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .names import BYTE_FORMATS, HALF_FORMATS, SCALES

WIDTHS = (16, 8, 4, 2)
SCALE_BYTES = 2
HEAD_BYTES = 1


@dataclass(frozen=True, slots=True)
class Run:
    """Where one run lies: `channels` channels from `first_channel`, bytes from `first_byte`."""

    bits: int
    first_channel: int
    channels: int
    first_byte: int

    @property
    def num_bytes(self) -> int:
        return self.channels * self.bits // 8

    @property
    def at_channel(self) -> slice:
        return slice(self.first_channel, self.first_channel + self.channels)

    @property
    def at_byte(self) -> slice:
        return slice(self.first_byte, self.first_byte + self.num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """Everything about a row but its runs.

    Attributes:
        scales: `static` or `token`, see above.
        gains: whether tokens that reach further than static levels have a gain.
        half: number format of 16-bit channels, `float16` or `bfloat16`.
        byte: what 8-bit channels hold: `uniform` levels, or floats `e4m3` or `e5m2`.
        alignment: rows are a multiple of this many bytes.

    Raises:
        ConfigError: for anything else.
    """

    scales: str = "static"
    gains: bool = True
    half: str = "float16"
    byte: str = "uniform"
    alignment: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (
            ("scales", SCALES),
            ("half", HALF_FORMATS),
            ("byte", BYTE_FORMATS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}"
                )
        if self.scales == "token" and not self.gains:
            raise ConfigError("gains=False is for static scales; scales per token need no gains")
        if self.alignment < 1:
            raise ConfigError(f"alignment={self.alignment} must be at least 1 byte")

    def uses_levels(self, bits: int) -> bool:
        """Whether channels of this width are codes of levels, which have a limited reach."""
        return bits < 8 or (bits == 8 and self.byte == "uniform")

    def scale_bytes(self, widths: Sequence[int]) -> int:
        """Bytes per row for gains or scales, given the widths of its runs."""
        scaled = {bits for bits in widths if self.uses_levels(bits)}
        if self.scales == "token":
            return SCALE_BYTES * len(scaled)
        return HEAD_BYTES if self.gains and scaled and 8 not in scaled else 0

    def row_bytes(self, runs: Sequence[tuple[int, int]]) -> int:
        """Bytes of a row of these (channels, bits)."""
        bare = sum(channels * bits // 8 for channels, bits in runs)
        bare += self.scale_bytes([bits for _, bits in runs])
        return -(-bare // self.alignment) * self.alignment


def place_runs(runs: Sequence[tuple[int, int]]) -> tuple[Run, ...]:
    """Runs back to back, from (channels, bits).

    Raises:
        ConfigError: a width that is not 16, 8, 4 or 2, or a run that does not fill whole bytes.
    """
    placed, channel, byte = [], 0, 0
    for channels, bits in runs:
        if bits not in WIDTHS:
            raise ConfigError(f"a run of {bits} bits cannot be stored; one of {WIDTHS} is due")
        if channels < 1 or channels * bits % 8:
            raise ConfigError(f"a run of {channels} channels of {bits} bits fills no bytes")
        placed.append(Run(bits, channel, channels, byte))
        channel += channels
        byte += channels * bits // 8
    return tuple(placed)
