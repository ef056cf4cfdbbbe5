"""Coding latents as rows of bytes, and back (`row_layout` draws a row)."""

from __future__ import annotations

from dataclasses import astuple

import torch
from torch import Tensor, nn

from .levels import (
    HEAD_ESCAPED_LEVELS,
    HEAD_GAINS,
    HEAD_LEVELS,
    HEAD_NAN,
    UNIFORM_BITS,
    UNIFORM_CLIP,
    UNIFORM_STEP,
    byte_table,
    edges_of,
    head_tables,
    outermost_level,
)
from .row_format import RowFormat
from .tables import table

LARGEST = torch.finfo(torch.float32).max


class RowCodec:
    """Codes latents (..., R) as rows (..., row_bytes) of uint8, and back.

    Latents that are not finite are coded as NaN: they decode to NaN in all channels. Levels without
    gains have no code for that; there they decode to a number near 0.

    Args:
        runs: (channels, bits) of each run, in channel order.
        format: number formats, scales and alignment.

    Raises:
        ConfigError: a width that is not 16, 8, 4 or 2, or a run that does not fill whole bytes.
    """

    def __init__(self, runs: tuple[tuple[int, int], ...], format: RowFormat | None = None) -> None:
        self.format = RowFormat() if format is None else format
        self.layout = self.format.layout(runs)
        self.description = ([n for n, _ in runs], [bits for _, bits in runs], *astuple(self.format))
        self.runs = self.layout.runs
        self.num_channels, self.row_bytes = self.layout.num_channels, self.layout.row_bytes
        self.head_byte, self.head_channel = self.layout.head_byte, self.layout.head_channel
        self.leveled = tuple(run for run in self.runs if run.kind.coded)
        self.leveled_widths = tuple(sorted({run.bits for run in self.leveled}, reverse=True))
        self.token_scales = bool(self.layout.scaled_widths)
        self._limit = torch.full((self.num_channels,), LARGEST, dtype=torch.float32, device="cpu")
        if self.head_byte is not None:
            for run in self.leveled:
                self._limit[run.at_channel] = 0.0
        self._make_tables(torch.device("cpu"))

    def _make_tables(self, device: torch.device) -> None:
        """Have the tables made now rather than within a graph."""
        for bits in self.leveled_widths:
            if bits != UNIFORM_BITS:
                _edges(bits, device)
                _byte_table(bits, device)
        if self.head_byte is not None:
            _head_values(device)
            _head_gains(device)

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
        limit = self._limit.to(latent.device)
        limit = limit.clamp_min(UNIFORM_CLIP) if reach is None else limit + reach.float()
        magnitude, finite, beyond = latent.abs(), None, None
        if not (_on_host(latent) and bool((magnitude <= limit).all())):
            # The largest magnitude that passes its reach, 0 if none does, (..., 1); NaN or infinite
            # exactly where the latent is not finite.
            beyond = (magnitude * (magnitude > limit)).amax(dim=-1, keepdim=True)
            finite = torch.isfinite(beyond)
            latent = torch.where(finite, latent, 0.0)
            beyond = torch.where(finite, beyond, 0.0)
        divisors = self._divisors(latent, beyond)
        parts = []
        for run in self.runs:
            part = latent[..., run.at_channel]
            if run in self.leveled:
                if run.bits in divisors:
                    part = part / divisors[run.bits]
                parts.append(_pack(_codes(part, run.bits), run.bits))
            else:
                parts.append(_as_floats(part, finite, run.kind.dtype))
        if self.token_scales:
            scales = torch.cat([divisors[bits] for bits in self.layout.scaled_widths], dim=-1)
            parts.append(_as_floats(scales, finite, torch.float16))
        rows = torch.cat(parts, dim=-1)
        if self.row_bytes > rows.shape[-1]:
            rows = nn.functional.pad(rows, (0, self.row_bytes - rows.shape[-1]))
        if self.head_byte is not None:
            head = self._head_codes(latent, divisors.get(self.leveled[0].bits))
            if finite is not None:
                head = torch.where(finite[..., 0], head, HEAD_NAN)
            rows[..., self.head_byte] = head
        return rows

    def _divisors(self, latent: Tensor, beyond: Tensor | None) -> dict[int, Tensor]:
        """What levels of each width are multiplied by, (..., 1): one gain, or a scale each; nothing
        for gains of 1 throughout."""
        if not self.token_scales:
            if beyond is None or self.head_byte is None:
                return {}
            exponent = (beyond / UNIFORM_CLIP).clamp_min(1.0).log2().ceil()
            return dict.fromkeys(self.leveled_widths, exponent.clamp_max(HEAD_GAINS).exp2())
        divisors = {}
        for bits in self.layout.scaled_widths:
            parts = [latent[..., run.at_channel] for run in self.leveled if run.bits == bits]
            largest = torch.cat(parts, dim=-1).abs().amax(dim=-1, keepdim=True)
            scale = (largest / outermost_level(bits)).clamp(1e-6, 6e4)
            divisors[bits] = scale.half().float()
        return divisors

    def _head_codes(self, latent: Tensor, gain: Tensor | None) -> Tensor:
        """Head bytes (...): gain (None for 1), and the first 8-bit channel if there is one."""
        at = 0 if self.head_channel is None else self.head_channel
        value = latent[..., at]
        if self.head_channel is None:
            value = torch.zeros_like(value)
        if gain is not None:
            value = value / gain[..., 0]
        position = value / (2 * UNIFORM_CLIP) + 0.5
        fine = (position * HEAD_LEVELS).clamp_(0, HEAD_LEVELS - 1)
        if gain is None:
            return fine.to(torch.uint8)
        exponent = gain[..., 0].log2()
        coarse = (position * HEAD_ESCAPED_LEVELS).clamp_(0, HEAD_ESCAPED_LEVELS - 1)
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
                parts.append(aligned.view(run.kind.dtype).to(dtype))
                continue
            part = _levels(packed, run.bits)
            if run.bits in factors:
                part *= factors[run.bits]
            if run.first_channel == self.head_channel:
                part[..., :1] = head_values
            parts.append(part.to(dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _factors(self, rows: Tensor) -> tuple[dict[int, Tensor], Tensor | None]:
        """What levels of each width are multiplied by, and the values of the head channel, (..., 1)
        each."""
        if self.token_scales:
            at = slice(self.layout.after_runs, self.layout.after_scales)
            stored = rows[..., at].clone(memory_format=torch.contiguous_format)
            scales = stored.view(torch.float16).float().unsqueeze(-2).unbind(-1)
            return dict(zip(self.layout.scaled_widths, scales, strict=True)), None
        if self.head_byte is None:
            return {}, None
        head = rows[..., self.head_byte]
        head_values = None
        if self.head_channel is not None:
            head_values = nn.functional.embedding(head.int(), _head_values(rows.device))
        if _on_host(rows) and not bool((head >= HEAD_LEVELS).any()):
            return {}, head_values  # no token is escaped
        gain = nn.functional.embedding(head.int(), _head_gains(rows.device))
        return dict.fromkeys(self.leveled_widths, gain), head_values

    def saturated(self, latent: Tensor) -> int:
        """Number of elements of latents (..., R) that are clipped whatever the gain or scale;
        without gains, of those that would have called for one."""
        largest = 6e4 if self.token_scales else 2.0**HEAD_GAINS
        count = 0
        for run in self.runs:
            if run in self.leveled:
                limit = largest * outermost_level(run.bits)
                if not self.format.gains:
                    limit = UNIFORM_CLIP
            else:
                limit = torch.finfo(run.kind.dtype).max
            count += int((latent[..., run.at_channel].abs() > limit).sum())
        return count

    def escaped(self, rows: Tensor) -> Tensor:
        """Which tokens (...) of rows (..., row_bytes) needed a gain; none where there are none."""
        if self.head_byte is None:
            return torch.zeros(rows.shape[:-1], dtype=torch.bool, device=rows.device)
        return rows[..., self.head_byte] >= HEAD_LEVELS


def _codes(x: Tensor, bits: int) -> Tensor:
    """Index of the nearest level of each element, uint8."""
    if bits == UNIFORM_BITS:
        position = (x / (2 * UNIFORM_CLIP) + 0.5) * 256
        return position.clamp_(0, 255).to(torch.uint8)
    edges = _edges(bits, x.device)
    return torch.bucketize(x.contiguous(), edges, out_int32=True).to(torch.uint8)


def _levels(packed: Tensor, bits: int) -> Tensor:
    """Levels (..., channels), float32, of bytes (..., channels * bits / 8)."""
    if bits == UNIFORM_BITS:
        return packed.float().mul_(UNIFORM_STEP).add_(0.5 * UNIFORM_STEP - UNIFORM_CLIP)
    levels = _byte_table(bits, packed.device)
    if not _on_host(packed):
        return nn.functional.embedding(packed.int(), levels).flatten(-2)
    # Gathering single numbers takes half the time of gathering rows of them.
    whole = levels.view(torch.complex128 if bits == 2 else torch.int64).flatten()
    found = whole.index_select(0, packed.int().flatten()).view(torch.float32)
    return found.view(*packed.shape[:-1], -1)


@table
def _edges(bits: int, device: torch.device) -> Tensor:
    return edges_of(bits).to(device, torch.float32)


@table
def _byte_table(bits: int, device: torch.device) -> Tensor:
    return byte_table(bits).to(device)


@table
def _head_values(device: torch.device) -> Tensor:
    """Values of head bytes, (256, 1) float32."""
    return head_tables()[0][:, None].to(device, torch.float32)


@table
def _head_gains(device: torch.device) -> Tensor:
    """Gains of head bytes, (256, 1) float32."""
    return head_tables()[1][:, None].to(device, torch.float32)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., n) of 2, 4 or 8 bits, several neighbours to a byte: (..., n * bits / 8)."""
    if bits == UNIFORM_BITS:
        return codes
    # A word holds the codes of one byte, eight bits apart. Each term of the factor moves another
    # code to its place in the word's last byte; no two of all products overlap.
    word, size = (torch.int32, 32) if bits == 2 else (torch.int16, 16)
    factor = sum(1 << (size - 8 - i * (8 - bits)) for i in range(8 // bits))
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
