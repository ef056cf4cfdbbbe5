"""Compiled: what the mean of keys that are stored rotated about it adds to products."""

from ...host_code import compiled
from .products import products


@compiled
def _block_products(asked, first, num_rows, cos, sin, table, turned, out):
    """Products (M, block) of queries that are turned back to the base of a block, by the angles
    whose cos and sin these are, with a table (block, D).

    Args:
        asked: queries, whose numbers from `first` on are D rotated channels.
        turned: room for them, (M, D).
    """
    half, width = cos.shape[0], table.shape[1]
    for m in range(num_rows):
        query, to = asked[m][first:], turned[m]
        for k in range(half):
            x, y = query[k], query[half + k]
            to[k] = x * cos[k] - y * sin[k]
            to[half + k] = y * cos[k] + x * sin[k]
        for k in range(2 * half, width):
            to[k] = query[k]
    products(turned, num_rows, table, table.shape[0], width, out)


@compiled
def add_mean(scores, count, slots, asked, first, mean, head, turned, at, parts):
    """Add the mean's part to products (M, n) of one head, of the slots that they are of, ascending.

    Args:
        asked, first, turned: as of `_block_products`.
        mean: table (J, block, D), and cos and sin by block, see `RotatedMean`.
        at: the block whose products are in `parts` by head, (J,); -1 for none.
        parts: (J, M, block).
    """
    table, cos, sin = mean
    block_slots, num_rows, n = table.shape[1], scores.shape[0], 0
    while n < count:
        block = slots[n] // block_slots
        if block != at[head]:
            _block_products(
                asked, first, num_rows, cos[block], sin[block], table[head], turned, parts[head]
            )
            at[head] = block
        base, end = block * block_slots, n + 1
        while end < count and slots[end] // block_slots == block:
            end += 1
        for m in range(num_rows):
            row, part = scores[m], parts[head, m]
            for i in range(n, end):
                row[i] += part[slots[i] - base]
        n = end
