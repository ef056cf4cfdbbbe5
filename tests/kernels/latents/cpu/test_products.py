"""Products of small matrices equal those of numpy, whatever lies behind their rows."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from cacheshrink_hybrid.kernels.host_code import compiled
from cacheshrink_hybrid.kernels.latents.cpu.products import COLUMNS, mix, products
from cacheshrink_hybrid.kernels.latents.cpu.tiles import ROWS, mixing_tile, product_tile
from tests.tolerances import SAME_COMPUTATION

WIDTHS = [1, 8, 15, 16, 50, 64, 83, 144]
BESIDE = 5
"""Numbers behind each row that are NaN."""


def _rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Rows of random numbers, among others."""
    found = np.full((count + 1, width + BESIDE), np.nan, np.float32)
    found[:count, :width] = np.random.default_rng(seed + count).normal(size=(count, width))
    return found


def _assert_close(got: np.ndarray, due: np.ndarray) -> None:
    assert np.abs(got - due).max() < SAME_COMPUTATION * max(1.0, np.abs(due).max())


@pytest.mark.parametrize("width", WIDTHS)
def test_products(width: int) -> None:
    for rows in range(1, 10):
        for columns in (1, 3, COLUMNS, 7, 12):
            left, right = _rows(rows, width), _rows(columns, width, seed=1)
            out = np.full((rows + 1, columns + BESIDE), 7, np.float32)
            products(left, rows, right, columns, width, out)
            _assert_close(out[:rows, :columns], left[:rows, :width] @ right[:columns, :width].T)
            assert (out[rows:] == 7).all() and (out[:, columns:] == 7).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_mix(width: int) -> None:
    first = 2
    for rows in range(1, 10):
        for count in (1, 5):
            weights, values = _rows(rows, count), _rows(count, first + width, seed=1)
            due = np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)
            sums = due.copy()
            mix(weights[:rows], values, count, first, sums)
            due += weights[:rows, :count] @ values[:count, first : first + width]
            _assert_close(sums, due)


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("rows", range(1, ROWS + 1))
def test_tiles_of_vectors_of_any_length(rows: int, lanes: int) -> None:
    """Also those that this CPU has no registers for."""
    product, mixing = product_tile(rows, 2, lanes), mixing_tile(rows, 1, lanes)

    @compiled
    def both(left, right, width, out, weights, count, sums):
        product(left, 0, right, 0, width, out)
        mixing(weights, 0, right, count, 0, sums, 0)

    for width in (lanes, lanes + 3, 2 * lanes - 1):
        left, right, weights = _rows(rows, width), _rows(2, width, seed=1), _rows(rows, 2)
        out, sums = np.zeros((rows, 2), np.float32), np.zeros((rows, lanes - 1), np.float32)
        both(left, right, width, out, weights, 2, sums)
        _assert_close(out, left[:rows, :width] @ right[:2, :width].T)
        _assert_close(sums, weights[:rows, :2] @ right[:2, : lanes - 1])
