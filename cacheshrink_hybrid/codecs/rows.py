"""Rows: the latent of one token in one layer, as bytes.

A row is a sequence of runs, each with one width for its channels:

    16 bits   float16
     8 bits   uniform levels, one byte per channel
     4 bits   Lloyd-Max levels; of a run of n channels, byte j holds j (low bits) and n/2 + j
     2 bits   Lloyd-Max levels; byte j holds j (lowest bits), n/4 + j, n/2 + j and 3n/4 + j

Channels have unit variance, so no scales are stored. Tokens that reach further than the levels
do are divided by a gain, a power of two. The gain hides in the row's head byte, which codes the
first 8-bit channel with 160 of its 256 codes and leaves the others to gains; rows without an 8-bit
run have one more byte for it. Ordinary tokens pay nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ConfigError
from .levels import (
    HEAD_ESCAPED_LEVELS,
    HEAD_GAINS,
    HEAD_LEVELS,
    UNIFORM_CLIP,
    edges_of,
    head_tables,
    levels_of,
)

WIDTHS = (16, 8, 4, 2)
FLOAT16_MAX = 65504.0


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


class RowCodec:
    """Codes latents (..., R) as rows (..., row_bytes) of uint8, and back.

    Args:
        runs: (channels, bits) of each run, in channel order.

    Raises:
        ConfigError: a width that is not 16, 8, 4 or 2, or a run that does not fill whole bytes.
    """

    def __init__(self, runs: tuple[tuple[int, int], ...]) -> None:
        placed, channel, byte = [], 0, 0
        for channels, bits in runs:
            if bits not in WIDTHS:
                raise ConfigError(f"a run of {bits} bits cannot be stored; one of {WIDTHS} is due")
            if channels < 1 or channels * bits % 8:
                raise ConfigError(f"a run of {channels} channels of {bits} bits fills no bytes")
            placed.append(Run(bits, channel, channels, byte))
            channel += channels
            byte += channels * bits // 8
        self.runs = tuple(placed)
        self.num_channels = channel
        self.escapes = any(run.bits < 16 for run in self.runs)
        head_run = next((run for run in self.runs if run.bits == 8), None)
        self.head_channel = None if head_run is None else head_run.first_channel
        if head_run is not None:
            self.head_byte: int | None = head_run.first_byte
        else:
            self.head_byte = byte if self.escapes else None
        self.row_bytes = byte + (1 if self.escapes and head_run is None else 0)

    @cached_property
    def _coded_channels(self) -> Tensor:
        """Channels that levels of limited reach represent."""
        coded = [
            torch.arange(self.num_channels)[run.at_channel] for run in self.runs if run.bits < 16
        ]
        return torch.cat(coded) if coded else torch.empty(0, dtype=torch.long)

    def encode(self, latent: Tensor, reach: Tensor | None = None) -> Tensor:
        """Rows (..., row_bytes), uint8, of latents (..., R).

        A token is escaped when one of its channels passes its reach; the gain is then the smallest
        power of two that brings these channels within the levels. What lies beyond the largest
        gain, or beyond float16, is clipped; `saturated` counts it. NaNs are the caller's to refuse
        (`check_finite`).

        Args:
            latent: channels of unit variance.
            reach: magnitude beyond which clipping a channel costs more than a coarser row, (R,);
                None for the outermost level everywhere.
        """
        latent = latent.float()
        exponent = self._gain_exponent(latent, reach) if self.escapes else None
        rows = latent.new_zeros((*latent.shape[:-1], self.row_bytes), dtype=torch.uint8)
        for run in self.runs:
            part = latent[..., run.at_channel]
            if run.bits == 16:
                half = part.clamp(-FLOAT16_MAX, FLOAT16_MAX).half().contiguous()
                rows[..., run.at_byte] = half.view(torch.uint8)
                continue
            assert exponent is not None
            codes = _codes(part * torch.exp2(-exponent), run.bits)
            rows[..., run.at_byte] = _pack(codes, run.bits)
        if exponent is not None:
            rows[..., self.head_byte] = self._head_codes(latent, exponent[..., 0])
        return rows

    def _gain_exponent(self, latent: Tensor, reach: Tensor | None) -> Tensor:
        """Exponent of each token's gain, (..., 1), 0 for ordinary tokens."""
        coded = self._coded_channels.to(latent.device)
        magnitude = latent[..., coded].abs()
        beyond = magnitude > (UNIFORM_CLIP if reach is None else reach[coded])
        largest = (magnitude * beyond).amax(dim=-1, keepdim=True) / UNIFORM_CLIP
        return largest.clamp_min(1.0).log2().ceil().clamp_max(HEAD_GAINS)

    def _head_codes(self, latent: Tensor, exponent: Tensor) -> Tensor:
        """Head bytes (...): gain, and the first 8-bit channel if there is one."""
        if self.head_channel is None:
            value = torch.zeros_like(exponent)
        else:
            value = latent[..., self.head_channel] * torch.exp2(-exponent)
        position = (value / (2 * UNIFORM_CLIP) + 0.5).clamp(0.0, 1.0)
        fine = (position * HEAD_LEVELS).floor().clamp_max(HEAD_LEVELS - 1)
        coarse = (position * HEAD_ESCAPED_LEVELS).floor().clamp_max(HEAD_ESCAPED_LEVELS - 1)
        escaped = HEAD_LEVELS + (exponent - 1) * HEAD_ESCAPED_LEVELS + coarse
        return torch.where(exponent > 0, escaped, fine).to(torch.uint8)

    def decode(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Latents (..., R) of rows (..., row_bytes)."""
        parts = []
        gain = None
        if self.head_byte is not None:
            head = rows[..., self.head_byte].int()
            values, gains = (table.to(rows.device, torch.float32) for table in head_tables())
            gain = gains[head][..., None]
        for run in self.runs:
            packed = rows[..., run.at_byte]
            if run.bits == 16:
                # A single row counts as contiguous whatever its stride, so a copy is made by force.
                aligned = packed.clone(memory_format=torch.contiguous_format)
                parts.append(aligned.view(torch.float16).to(dtype))
                continue
            assert gain is not None
            levels = levels_of(run.bits).to(rows.device, torch.float32)
            part = levels[_unpack(packed, run.bits).int()] * gain
            if run.first_channel == self.head_channel:
                part[..., 0] = values[head]
            parts.append(part.to(dtype))
        return torch.cat(parts, dim=-1)

    def saturated(self, latent: Tensor) -> int:
        """Number of elements that no gain brings into reach."""
        largest = 2.0**HEAD_GAINS * UNIFORM_CLIP
        count = 0
        for run in self.runs:
            limit = FLOAT16_MAX if run.bits == 16 else largest
            count += int((latent[..., run.at_channel].abs() > limit).sum())
        return count


def check_finite(latent: Tensor) -> None:
    """Raise `ConfigError` if a latent holds NaN or infinity, which no code stands for."""
    if not torch.isfinite(latent).all():
        raise ConfigError(
            "latents are not finite, so they cannot be coded; run the model in bfloat16 or float32"
        )


def _codes(x: Tensor, bits: int) -> Tensor:
    """Index of the nearest level of each element, uint8."""
    if bits == 8:
        position = (x / (2 * UNIFORM_CLIP) + 0.5) * 256
        return position.floor().clamp(0, 255).to(torch.uint8)
    edges = edges_of(bits).to(x.device, x.dtype)
    return torch.bucketize(x.contiguous(), edges).to(torch.uint8)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., n) of 2, 4 or 8 bits, several to a byte: (..., n * bits / 8)."""
    if bits == 8:
        return codes
    packed = None
    for shift, part in enumerate(codes.chunk(8 // bits, dim=-1)):
        moved = part << (shift * bits)
        packed = moved if packed is None else packed | moved
    return packed


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `_pack`."""
    if bits == 8:
        return packed
    mask = 2**bits - 1
    return torch.cat([(packed >> (s * bits)) & mask for s in range(8 // bits)], dim=-1)
