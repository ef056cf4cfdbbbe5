"""Numbers that lie whole in rows are decoded as torch reads them, in vectors and one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from cacheshrink_hybrid.codecs.levels import uniform_levels
from cacheshrink_hybrid.codecs.row_layout import Kind
from cacheshrink_hybrid.kernels.latents.cpu.tables import row_tables
from cacheshrink_hybrid.kernels.latents.cpu.whole_numbers import decode_floats, decode_uniform8

BEFORE, GAIN_BYTE = 3, 1
WIDTHS = [1, 7, 8, 16, 37]


def _decoded(rows: np.ndarray, channels: int, kind: Kind, gains: np.ndarray) -> np.ndarray:
    """Numbers that lie behind the first byte of rows, up to the last byte of all."""
    places = (np.arange(len(rows)) * rows.shape[1]).astype(np.uint64)
    out = np.full((len(rows), BEFORE + channels + 1), 7, np.float32)
    run = GAIN_BYTE, BEFORE, channels, row_tables(), out
    if kind is Kind.UNIFORM8:
        decode_uniform8(rows.ravel(), places, len(rows), gains, *run)
    else:
        decode_floats(kind.number, rows.ravel(), places, len(rows), *run)
    assert (out[:, :BEFORE] == 7).all() and (out[:, BEFORE + channels :] == 7).all()
    return out[:, BEFORE : BEFORE + channels]


@pytest.mark.parametrize("kind", [kind for kind in Kind if not kind.coded])
def test_floats(kind: Kind) -> None:
    """Every number of 8 and 16 bits, subnormal ones, infinities and NaN among them."""
    if kind is Kind.FLOAT32:
        numbers = torch.randn(4096).view(torch.uint8)
    else:
        every = torch.arange(2**kind.bits).to(torch.uint16 if kind.bits == 16 else torch.uint8)
        numbers = every.view(torch.uint8)
    size = kind.bits // 8
    for channels in WIDTHS:
        count = len(numbers) // (size * channels)
        part = numbers[: count * channels * size].view(count, -1)
        rows = torch.cat([torch.full((count, GAIN_BYTE), 255, dtype=torch.uint8), part], dim=1)
        found = _decoded(rows.numpy(), channels, kind, np.ones(count, np.float32))
        due = part.contiguous().view(kind.dtype).float().numpy()
        assert np.array_equal(found, due, equal_nan=True)


def test_uniform8() -> None:
    codes = np.arange(256, dtype=np.uint8)
    for channels in WIDTHS:
        count = 256 // channels
        part = codes[: count * channels].reshape(count, channels)
        rows = np.concatenate([np.zeros((count, GAIN_BYTE), np.uint8), part], axis=1)
        gains = np.linspace(0.5, 8, count, dtype=np.float32)
        due = uniform_levels().numpy()[part] * gains[:, None]
        found = _decoded(rows, channels, Kind.UNIFORM8, gains)
        assert np.abs(found - due).max() <= 1e-6 * np.abs(due).max()
