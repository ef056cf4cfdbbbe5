"""Levels: optimal for a normal channel, symmetric, and as good as the literature says."""

from __future__ import annotations

import math

import pytest
import torch

from cacheshrink_hybrid.codecs.levels import (
    HEAD_GAINS,
    HEAD_LEVELS,
    HEAD_NAN,
    UNIFORM_CLIP,
    byte_table,
    edges_of,
    head_tables,
    levels_of,
    lloyd_max_levels,
    outermost_level,
)

# Mean squared error of the optimal quantiser of a standard normal (Max 1960, table I).
NORMAL_DISTORTION = {2: 0.1175, 4: 0.009497}


def _normal(num: int = 400_000) -> torch.Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("bits", [2, 4])
def test_lloyd_max_distortion(bits: int) -> None:
    x = _normal()
    error = (levels_of(bits)[torch.bucketize(x, edges_of(bits))] - x).square().mean()
    assert error == pytest.approx(NORMAL_DISTORTION[bits], rel=0.02)


@pytest.mark.parametrize("bits", [2, 4])
def test_levels_are_the_fixed_point_of_lloyds_iteration(bits: int) -> None:
    """Each is the mean of a standard normal between its neighbours' midpoints."""
    levels = lloyd_max_levels(bits)
    infinity = torch.tensor([math.inf], dtype=torch.float64)
    edges = torch.cat([-infinity, edges_of(bits), infinity])
    density = torch.exp(-0.5 * edges**2) / math.sqrt(2 * math.pi)
    means = -density.diff() / torch.special.ndtr(edges).diff()
    torch.testing.assert_close(levels, means, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_outermost_level(bits: int) -> None:
    assert outermost_level(bits) == float(levels_of(bits)[-1])


@pytest.mark.parametrize("bits", [2, 4])
def test_each_level_is_the_mean_of_its_cell(bits: int) -> None:
    x = _normal()
    cells = torch.bucketize(x, edges_of(bits))
    for i, level in enumerate(lloyd_max_levels(bits).tolist()):
        inside = x[cells == i]
        assert inside.mean() == pytest.approx(
            level, abs=5 * float(inside.std()) / len(inside) ** 0.5
        )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_are_symmetric_and_ascending(bits: int) -> None:
    levels = levels_of(bits)
    assert len(levels) == 2**bits
    assert torch.equal(levels, -levels.flip(0))
    assert (levels.diff() > 0).all()


def test_head_bytes_cover_every_gain() -> None:
    values, gains = head_tables()
    assert len(values) == len(gains) == 256
    assert (gains[:HEAD_LEVELS] == 1).all()
    assert sorted(set(gains[:HEAD_NAN].tolist())) == [2.0**e for e in range(HEAD_GAINS + 1)]
    assert values[:HEAD_LEVELS].abs().max() < UNIFORM_CLIP
    assert torch.isnan(values[HEAD_NAN]) and torch.isnan(gains[HEAD_NAN])


@pytest.mark.parametrize("bits", [2, 4])
def test_byte_table_holds_the_lowest_bits_first(bits: int) -> None:
    table = byte_table(bits)
    assert table.shape == (256, 8 // bits)
    levels = levels_of(bits).float()
    for byte in (0, 1, 27, 255):
        expected = [levels[(byte >> shift) & (2**bits - 1)] for shift in range(0, 8, bits)]
        assert torch.equal(table[byte], torch.stack(expected))
