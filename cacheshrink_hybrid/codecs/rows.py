"""Coding latents as rows of bytes, and back (`row_layout` draws a row)."""

from __future__ import annotations

from dataclasses import astuple

import torch
from torch import Tensor, nn

from .gain_search import GainSearch, codes_of, level_table, rounded_levels
from .gains import LOST, gain_table
from .levels import UNIFORM_BITS, UNIFORM_CLIP, UNIFORM_STEP, byte_codes
from .row_format import RowFormat
from .row_layout import Run
from .tables import table


class RowCodec:
    """Codes latents (..., R) as rows (..., row_bytes) of uint8, and back.

    Latents that are not finite are coded as NaN: they decode to NaN in all channels. Levels without
    gains have no code for that; there they decode to a number near 0.

    Args:
        runs: (channels, bits) of each run, in channel order.
        format: number formats, gains and alignment.

    Raises:
        ConfigError: a width that rows do not have, or a run without channels.
    """

    def __init__(self, runs: tuple[tuple[int, int], ...], format: RowFormat | None = None) -> None:
        self.format = RowFormat() if format is None else format
        self.layout = self.format.layout(runs)
        self.description = ([n for n, _ in runs], [bits for _, bits in runs], *astuple(self.format))
        self.runs = self.layout.runs
        self.num_channels, self.row_bytes = self.layout.num_channels, self.layout.row_bytes
        self.gain_byte = self.layout.gain_byte
        coded = [run for run in self.runs if run.kind.coded]
        self._gains = GainSearch(coded) if self.gain_byte is not None else None
        # Made now rather than within a graph.
        host = torch.device("cpu")
        for run in coded:
            codes_of(torch.zeros(1), run.bits)
            rounded_levels(torch.zeros(1), run.bits)
            if run.bits != UNIFORM_BITS:
                level_table(run.bits, host)
                for plane in run.planes:
                    _code_words(plane.bits, host)
        gain_table(host)

    def encode(self, latent: Tensor, costs: Tensor | None = None) -> Tensor:
        """Rows (..., row_bytes), uint8, of latents (..., R).

        Coded channels are divided by the gain of their row, which is chosen by the error of the
        row. What lies beyond the largest gain, or beyond the range of a float, is clipped.

        Args:
            latent: channels of unit variance.
            costs: of a squared error in each channel, (R,); None for 1.
        """
        latent = latent.float()
        finite: Tensor | None = torch.isfinite(latent).all(dim=-1, keepdim=True)
        if _on_host(latent) and bool(finite.all()):  # type: ignore[union-attr]
            finite = None
        else:
            latent = torch.where(finite, latent, 0.0)
        gain_codes = gains = None
        if self._gains is not None:
            found = self._gains.codes(latent.reshape(-1, self.num_channels), costs)
            gain_codes = found.view(*latent.shape[:-1], 1)
            gains = gain_table(latent.device)[gain_codes]
        parts = []
        for run in self.runs:
            part = latent[..., run.at_channel]
            if run.kind.coded:
                codes = codes_of(part if gains is None else part / gains, run.bits)
                parts += _planes(codes, run)
            else:
                parts.append(_as_floats(part, finite, run.kind.dtype))
        if gain_codes is not None:
            if finite is not None:
                gain_codes = torch.where(finite, gain_codes, LOST)
            parts.append(gain_codes.to(torch.uint8))
        rows = torch.cat(parts, dim=-1)
        if self.row_bytes > rows.shape[-1]:
            rows = nn.functional.pad(rows, (0, self.row_bytes - rows.shape[-1]))
        return rows

    def decode(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Latents (..., R) of rows (..., row_bytes)."""
        gains = self.gains(rows)
        parts = []
        for run in self.runs:
            packed = rows[..., run.at_byte]
            if not run.kind.coded:
                # A single row counts as contiguous whatever its stride, so a copy is made by force.
                aligned = packed.clone(memory_format=torch.contiguous_format)
                parts.append(aligned.view(run.kind.dtype).to(dtype))
                continue
            part = _levels(rows, run)
            if gains is not None:
                part = part * gains
            parts.append(part.to(dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def gains(self, rows: Tensor) -> Tensor | None:
        """Gains (..., 1), float32, of rows (..., row_bytes), NaN for lost tokens; None where rows
        have none."""
        if self.gain_byte is None:
            return None
        return nn.functional.embedding(
            rows[..., self.gain_byte].int(), gain_table(rows.device)[:, None]
        )


def _levels(rows: Tensor, run: Run) -> Tensor:
    """Levels (..., channels), float32, of a run of rows (..., row_bytes)."""
    if run.bits == UNIFORM_BITS:
        codes = rows[..., run.at_byte]
        return codes.float().mul_(UNIFORM_STEP).add_(0.5 * UNIFORM_STEP - UNIFORM_CLIP)
    codes, shift = None, 0
    for plane in run.planes:
        packed = rows[..., plane.at_byte]
        words = _code_words(plane.bits, rows.device)
        found = words.index_select(0, packed.reshape(-1).int()).view(torch.uint8)
        found = found.view(*packed.shape[:-1], -1)[..., : run.channels]
        codes = found if codes is None else codes | (found << shift)
        shift += plane.bits
    assert codes is not None
    levels = level_table(run.bits, rows.device)
    return levels.index_select(0, codes.reshape(-1).int()).view(codes.shape)


@table
def _code_words(bits: int, device: torch.device) -> Tensor:
    """The codes that each byte of a plane holds, a byte each, in one word, (256,): gathering words
    takes a fraction of the time of gathering rows of bytes."""
    return byte_codes(bits).view(_WORDS[bits]).flatten().to(device)


_WORDS = {1: torch.int64, 2: torch.int32, 4: torch.int16}
"""Of as many bytes as codes of a plane share one."""


def _planes(codes: Tensor, run: Run) -> list[Tensor]:
    """The planes (..., bytes) of codes (..., channels), uint8."""
    if run.bits == UNIFORM_BITS:
        return [codes]
    planes, shift = [], 0
    for plane in run.planes:
        planes.append(_packed((codes >> shift) & (2**plane.bits - 1), plane.bits))
        shift += plane.bits
    return planes


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., n) of 1, 2 or 4 bits, several neighbours to a byte, zeros behind the last."""
    word, per_byte = _WORDS[bits], 8 // bits
    if codes.shape[-1] % per_byte:
        codes = nn.functional.pad(codes, (0, -codes.shape[-1] % per_byte))
    # A word holds the codes of one byte, eight bits apart. Each term of the factor moves another
    # code to its place in the word's last byte; no two of all products overlap.
    size = 8 * per_byte
    factor = sum(1 << (size - 8 - i * (8 - bits)) for i in range(per_byte))
    packed = codes.contiguous().view(word) * factor >> (size - 8)
    return packed.to(torch.uint8)  # keeps the lowest byte


def _as_floats(x: Tensor, finite: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Numbers (..., n) as bytes of floats, clipped to their range; NaN where not finite."""
    limit = torch.finfo(dtype).max
    x = x.clamp(-limit, limit)
    if finite is not None:
        x = torch.where(finite, x, torch.nan)
    return x.to(dtype).contiguous().view(torch.uint8)


def _on_host(tensor: Tensor) -> bool:
    """Whether looking at values costs nothing, so that work for rare ones can be left out."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
