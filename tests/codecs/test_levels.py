"""Levels: optimal for a normal channel, symmetric, and as good as the literature says."""

from __future__ import annotations

import math

import pytest
import torch

from cacheshrink_hybrid.codecs.gain_search import codes_of, rounded_levels
from cacheshrink_hybrid.codecs.gains import LARGEST_CODE, STEPS, UNIT_CODE, gain_table
from cacheshrink_hybrid.codecs.levels import (
    EDGE_STEPS,
    FIRST_GAIN,
    byte_codes,
    edges_of,
    first_level,
    first_step,
    levels_of,
    lloyd_max_levels,
    normal_distortion,
    outermost_level,
    row_tables,
    step_codes,
    step_tables,
)

CPU = torch.device("cpu")
# Mean squared error of the optimal quantiser of a standard normal (Max 1960, table I).
NORMAL_DISTORTION = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
WIDTHS = [1, 2, 3, 4, 5, 6]

every_width = pytest.mark.parametrize("bits", WIDTHS)


@pytest.mark.parametrize("bits", NORMAL_DISTORTION)
def test_distortions_are_those_of_the_literature(bits: int) -> None:
    assert normal_distortion(bits) == pytest.approx(NORMAL_DISTORTION[bits], rel=3e-3)


@pytest.mark.parametrize("bits", [*WIDTHS, 8])
def test_distortions_are_those_of_a_sample(bits: int) -> None:
    """Thresholds on a grid cost nothing that can be seen."""
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    error = (rounded_levels(x, bits) - x).square().mean(dtype=torch.float64)
    assert float(error) == pytest.approx(normal_distortion(bits), rel=6e-3)


@every_width
def test_levels_are_the_fixed_point_of_lloyds_iteration(bits: int) -> None:
    """Each is the mean of a standard normal between its neighbours' midpoints."""
    levels = lloyd_max_levels(bits)
    infinity = torch.tensor([math.inf], dtype=torch.float64)
    edges = torch.cat([-infinity, 0.5 * (levels[1:] + levels[:-1]), infinity])
    density = torch.exp(-0.5 * edges**2) / math.sqrt(2 * math.pi)
    means = -density.diff() / torch.special.ndtr(edges).diff()
    torch.testing.assert_close(levels, means, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", [*WIDTHS, 8])
def test_levels_are_symmetric_and_ascending(bits: int) -> None:
    levels = levels_of(bits)
    assert len(levels) == 2**bits
    assert torch.equal(levels, -levels.flip(0))
    assert (levels.diff() > 0).all()
    assert outermost_level(bits) == float(levels[-1])


@every_width
def test_thresholds_lie_between_levels_on_a_grid(bits: int) -> None:
    levels, edges = lloyd_max_levels(bits), edges_of(bits)
    assert torch.equal(edges * EDGE_STEPS, (edges * EDGE_STEPS).round())
    midpoints = 0.5 * (levels[1:] + levels[:-1])
    assert (edges - midpoints).abs().max() <= 0.5 / EDGE_STEPS


@every_width
def test_codes_are_found_by_steps(bits: int) -> None:
    """As by comparing with all thresholds, and a number at a threshold belongs to the level
    above."""
    edges = edges_of(bits).float()
    x = torch.cat([torch.linspace(-6, 6, 2000), edges, edges - 1e-6])
    codes = codes_of(x, bits)
    assert torch.equal(codes.long(), torch.bucketize(x, edges, right=True))
    assert torch.equal(rounded_levels(x, bits), levels_of(bits).float()[codes.long()])
    assert torch.equal(codes_of(edges, bits).long(), torch.arange(1, 2**bits))


def test_uniform_codes() -> None:
    x = torch.tensor([-100.0, -4.5, -0.001, 0.0, 4.49, 100.0])
    assert codes_of(x, 8).tolist() == [0, 0, 127, 128, 255, 255]
    assert torch.equal(rounded_levels(x, 8), levels_of(8).float()[codes_of(x, 8).long()])


def test_kernels_look_up_one_table() -> None:
    table = row_tables(CPU)
    for bits in WIDTHS:
        first = first_level(bits)
        assert torch.equal(table[first : first + 2**bits], levels_of(bits).float())
        steps = step_tables(CPU)[first_step(bits) :][: len(step_codes(bits))]
        assert torch.equal(steps, step_codes(bits))
    torch.testing.assert_close(table[FIRST_GAIN:], gain_table(CPU), equal_nan=True, rtol=0, atol=0)


def test_gains_lie_on_a_grid_of_parts_of_an_octave() -> None:
    gains = gain_table(CPU)
    assert len(gains) == 256
    assert gains[UNIT_CODE] == 1
    assert (gains[0], gains[LARGEST_CODE]) == (2.0**-8, 2.0**15)
    octaves = gains[: LARGEST_CODE + 1].double().log2().diff()
    torch.testing.assert_close(octaves, torch.full_like(octaves, 1 / STEPS))
    assert gains[LARGEST_CODE + 1 :].isnan().all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_bytes_hold_the_lowest_bits_first(bits: int) -> None:
    table = byte_codes(bits)
    assert table.shape == (256, 8 // bits)
    for byte in (0, 1, 27, 255):
        assert table[byte].tolist() == [
            (byte >> shift) & (2**bits - 1) for shift in range(0, 8, bits)
        ]
