"""Compiled products of small matrices, whose rows are side by side in the cache, tile by tile."""

from ...host_code import compiled
from .tiles import COLUMNS, LANES, ROWS, mixing_tile, product_tile

_product1, _product2, _product3, _product4 = (product_tile(m, COLUMNS) for m in range(1, 5))
_single = product_tile(1, 1)
_mixing1, _mixing2, _mixing3, _mixing4 = (mixing_tile(m, COLUMNS) for m in range(1, 5))
_narrow1, _narrow2, _narrow3, _narrow4 = (mixing_tile(m, 1) for m in range(1, 5))
WIDE = COLUMNS * LANES


@compiled
def _tile_rows(left):
    """Rows of the next tile, of so many that are left: tiles are as equal as can be."""
    tiles = (left + ROWS - 1) // ROWS
    return (left + tiles - 1) // tiles


@compiled
def products(left, num_left, right, num_right, width, out):
    """out[m, n] = left[m] . right[n], for the first `width` numbers of rows."""
    if num_right < COLUMNS:
        for m in range(num_left):
            for n in range(num_right):
                _single(left, m, right, n, width, out)
        return
    for column in range(0, num_right, COLUMNS):
        n = min(column, num_right - COLUMNS)
        m = 0
        while m < num_left:
            rows = _tile_rows(num_left - m)
            if rows == 4:
                _product4(left, m, right, n, width, out)
            elif rows == 3:
                _product3(left, m, right, n, width, out)
            elif rows == 2:
                _product2(left, m, right, n, width, out)
            else:
                _product1(left, m, right, n, width, out)
            m += rows


@compiled
def mix(weights, values, num_values, first, sums):
    """sums[m] += sum over n of weights[m, n] * values[n], of the numbers from `first` on."""
    num_rows, width = sums.shape
    k = 0
    while k < width:
        wide = k + WIDE <= width
        m = 0
        while m < num_rows:
            rows = _tile_rows(num_rows - m)
            if rows == 4 and wide:
                _mixing4(weights, m, values, num_values, first, sums, k)
            elif rows == 3 and wide:
                _mixing3(weights, m, values, num_values, first, sums, k)
            elif rows == 2 and wide:
                _mixing2(weights, m, values, num_values, first, sums, k)
            elif wide:
                _mixing1(weights, m, values, num_values, first, sums, k)
            elif rows == 4:
                _narrow4(weights, m, values, num_values, first, sums, k)
            elif rows == 3:
                _narrow3(weights, m, values, num_values, first, sums, k)
            elif rows == 2:
                _narrow2(weights, m, values, num_values, first, sums, k)
            else:
                _narrow1(weights, m, values, num_values, first, sums, k)
            m += rows
        k += WIDE if wide else LANES
