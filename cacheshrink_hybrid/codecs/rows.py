"""Coding latents as rows of bytes, and back (`row_format` says how rows are laid out)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .levels import (
    HEAD_ESCAPED_LEVELS,
    HEAD_GAINS,
    HEAD_LEVELS,
    HEAD_NAN,
    UNIFORM_BITS,
    UNIFORM_CLIP,
    byte_table,
    edges_of,
    head_tables,
    levels_of,
)
from .row_format import BYTE_FORMATS, HALF_FORMATS, RowFormat, Run, place_runs


class RowCodec:
    """Codes latents (..., R) as rows (..., row_bytes) of uint8, and back.

    Latents that are not finite are coded as NaN: they decode to NaN in all channels.

    Args:
        runs: (channels, bits) of each run, in channel order.
        format: number formats, scales and alignment.

    Raises:
        ConfigError: a width that is not 16, 8, 4 or 2, or a run that does not fill whole bytes.
    """

    def __init__(self, runs: tuple[tuple[int, int], ...], format: RowFormat | None = None) -> None:
        self.format = RowFormat() if format is None else format
        self.runs = place_runs(runs)
        self.num_channels = sum(run.channels for run in self.runs)
        self.row_bytes = self.format.row_bytes(runs)
        self.leveled = tuple(run for run in self.runs if self.format.uses_levels(run.bits))
        self.scaled_widths = tuple(sorted({run.bits for run in self.leveled}, reverse=True))
        self.after_runs = self.runs[-1].at_byte.stop
        self.head_channel: int | None = None
        self.head_byte: int | None = None
        if self.leveled and self.format.scales == "static":
            head_run = next((run for run in self.leveled if run.bits == 8), None)
            self.head_byte = self.after_runs if head_run is None else head_run.first_byte
            self.head_channel = None if head_run is None else head_run.first_channel

    def encode(self, latent: Tensor, reach: Tensor | None = None) -> Tensor:
        """Rows (..., row_bytes), uint8, of latents (..., R).

        With static scales a token is escaped when one of its channels passes its reach; the gain is
        then the smallest power of two that brings these channels within the levels. What lies
        beyond the largest gain, or beyond the range of a float, is clipped; `saturated` counts it.

        Args:
            latent: channels of unit variance.
            reach: magnitude beyond which clipping a channel costs more than a coarser row, (R,);
                None for the outermost level everywhere.
        """
        latent = latent.float()
        finite = torch.isfinite(latent).all(dim=-1, keepdim=True)
        latent = torch.where(finite, latent, 0.0)
        rows = latent.new_zeros((*latent.shape[:-1], self.row_bytes), dtype=torch.uint8)
        divisors = self._divisors(latent, reach)
        for run in self.runs:
            part = latent[..., run.at_channel]
            if run in self.leveled:
                codes = _codes(part / divisors[run.bits], run.bits)
                rows[..., run.at_byte] = _pack(codes, run.bits)
            else:
                dtype = self._float_format(run)
                limit = torch.finfo(dtype).max
                part = torch.where(finite, part.clamp(-limit, limit), torch.nan)
                rows[..., run.at_byte] = part.to(dtype).contiguous().view(torch.uint8)
        if self.head_byte is not None:
            gain = divisors[self.leveled[0].bits]
            head = self._head_codes(latent, gain.log2()[..., 0])
            rows[..., self.head_byte] = torch.where(finite[..., 0], head, HEAD_NAN)
        elif self.leveled:
            scales = torch.cat([divisors[bits] for bits in self.scaled_widths], dim=-1)
            scales = torch.where(finite, scales, torch.nan).half().contiguous()
            at = slice(self.after_runs, self.after_runs + 2 * len(self.scaled_widths))
            rows[..., at] = scales.view(torch.uint8)
        return rows

    def _divisors(self, latent: Tensor, reach: Tensor | None) -> dict[int, Tensor]:
        """What levels of each width are multiplied by, (..., 1): one gain, or a scale each."""
        if not self.leveled:
            return {}
        if self.format.scales == "static":
            gain = self._gain(latent, reach)
            return dict.fromkeys(self.scaled_widths, gain)
        divisors = {}
        for bits in self.scaled_widths:
            parts = [latent[..., run.at_channel] for run in self.leveled if run.bits == bits]
            largest = torch.cat(parts, dim=-1).abs().amax(dim=-1, keepdim=True)
            scale = (largest / float(levels_of(bits)[-1])).clamp(1e-6, 6e4)
            divisors[bits] = scale.half().float()
        return divisors

    def _gain(self, latent: Tensor, reach: Tensor | None) -> Tensor:
        """Each token's gain, (..., 1), 1 for ordinary tokens."""
        beyond_all = []
        for run in self.leveled:
            magnitude = latent[..., run.at_channel].abs()
            limit = UNIFORM_CLIP if reach is None else reach[run.at_channel].to(magnitude)
            beyond_all.append((magnitude * (magnitude > limit)).amax(dim=-1, keepdim=True))
        largest = torch.cat(beyond_all, dim=-1).amax(dim=-1, keepdim=True) / UNIFORM_CLIP
        return torch.exp2(largest.clamp_min(1.0).log2().ceil().clamp_max(HEAD_GAINS))

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
        factors, head_values = self._factors(rows)
        parts = []
        for run in self.runs:
            packed = rows[..., run.at_byte]
            if run not in self.leveled:
                # A single row counts as contiguous whatever its stride, so a copy is made by force.
                aligned = packed.clone(memory_format=torch.contiguous_format)
                parts.append(aligned.view(self._float_format(run)).to(dtype))
                continue
            part = _levels(packed, run.bits)
            if run.bits in factors:
                part *= factors[run.bits]
            if run.first_channel == self.head_channel:
                part[..., 0] = head_values
            parts.append(part.to(dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _factors(self, rows: Tensor) -> tuple[dict[int, Tensor], Tensor | None]:
        """What levels of each width are multiplied by, (..., 1) each, and the values (...) of the
        head channel."""
        if not self.leveled:
            return {}, None
        if self.head_byte is None:
            at = slice(self.after_runs, self.after_runs + 2 * len(self.scaled_widths))
            stored = rows[..., at].clone(memory_format=torch.contiguous_format)
            scales = stored.view(torch.float16).float()
            return {bits: scales[..., i, None] for i, bits in enumerate(self.scaled_widths)}, None
        head = rows[..., self.head_byte]
        values, gains = (table.to(rows.device, torch.float32) for table in head_tables())
        head_values = None if self.head_channel is None else values[head.int()]
        on_host = rows.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_host and not bool((head >= HEAD_LEVELS).any()):
            return {}, head_values  # no token is escaped, and looking costs nothing here
        return dict.fromkeys(self.scaled_widths, gains[head.int()][..., None]), head_values

    def _float_format(self, run: Run) -> torch.dtype:
        """Number format of a run that is not coded by levels."""
        if run.bits == 16:
            return HALF_FORMATS[self.format.half]
        dtype = BYTE_FORMATS[self.format.byte]
        assert dtype is not None
        return dtype

    def saturated(self, latent: Tensor) -> int:
        """Number of elements of latents (..., R) that are clipped whatever the gain."""
        count = 0
        for run in self.runs:
            if run in self.leveled:
                limit = 2.0**HEAD_GAINS if self.format.scales == "static" else 6e4
                limit *= float(levels_of(run.bits)[-1])
            else:
                limit = torch.finfo(self._float_format(run)).max
            count += int((latent[..., run.at_channel].abs() > limit).sum())
        return count

    def escaped(self, rows: Tensor) -> Tensor:
        """Which tokens (...) of rows (..., row_bytes) needed a gain; none without static scales."""
        if self.head_byte is None:
            return torch.zeros(rows.shape[:-1], dtype=torch.bool, device=rows.device)
        return rows[..., self.head_byte] >= HEAD_LEVELS


def _codes(x: Tensor, bits: int) -> Tensor:
    """Index of the nearest level of each element, uint8."""
    if bits == UNIFORM_BITS:
        position = (x / (2 * UNIFORM_CLIP) + 0.5) * 256
        return position.floor().clamp(0, 255).to(torch.uint8)
    edges = edges_of(bits).to(x.device, x.dtype)
    return torch.bucketize(x.contiguous(), edges).to(torch.uint8)


def _levels(packed: Tensor, bits: int) -> Tensor:
    """Levels (..., channels), float32, of bytes (..., channels * bits / 8)."""
    if bits == UNIFORM_BITS:
        step = 2 * UNIFORM_CLIP / 2**UNIFORM_BITS
        return packed.float() * step + (0.5 * step - UNIFORM_CLIP)
    table = byte_table(bits).to(packed.device)
    return nn.functional.embedding(packed.int(), table).flatten(-2)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., n) of 2, 4 or 8 bits, several neighbours to a byte: (..., n * bits / 8)."""
    if bits == UNIFORM_BITS:
        return codes
    by_byte = codes.unflatten(-1, (-1, 8 // bits))
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)
    return (by_byte << shifts).sum(-1).to(torch.uint8)
