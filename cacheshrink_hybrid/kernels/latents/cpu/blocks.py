"""Compiled: keys are rotated by their place in a block of slots, and queries meet such keys."""

from ...host_code import compiled
from .products import mix

ROWS_AT_ONCE = 24
"""Queries of a key head that are absorbed at once, at the most where they are of several blocks."""


@compiled
def _turn(query, cos, sin, width, to):
    """The D channels of a rotated query, turned by the angles whose cos and sin these are."""
    half = cos.shape[0]
    for k in range(half):
        x, y = query[k], query[half + k]
        to[k] = x * cos[k] - y * sin[k]
        to[half + k] = y * cos[k] + x * sin[k]
    for k in range(2 * half, width):
        to[k] = query[k]


@compiled
def blocks_at_once(rows):
    """Blocks that so many queries of a key head are absorbed for at once: weights come from the
    second cache, once for all of them."""
    return max(1, ROWS_AT_ONCE // rows)


@compiled
def absorb_in_blocks(asked, first, count, ups, mean, turned, absorbed, of_mean):
    """Queries of all heads as the channels of some blocks see them, and what the keys' mean adds to
    their products: in rows m * count + i, of query m and the i-th block.

    Args:
        asked: rotated queries (M, D), those of a key head side by side.
        first, count: number of the first block, and how many.
        ups: (J, D, Rk).
        mean: table (J, D, slots of a block), and cos and sin by block, see `BlockUp`.
        turned: room, (M / J * count, D) or more rows.
        absorbed: filled in, (M * count, Rk) or more rows.
        of_mean: filled in, (M * count, slots of a block) or more rows.
    """
    table, cos, sin = mean
    heads, width, _ = table.shape
    num_queries = asked.shape[0] // heads
    rows = num_queries * count
    for j in range(heads):
        for m in range(num_queries):
            for i in range(count):
                query, to = asked[j * num_queries + m], turned[m * count + i]
                _turn(query, cos[first + i], sin[first + i], width, to)
        own = slice(j * rows, (j + 1) * rows)
        absorbed[own], of_mean[own] = 0, 0
        mix(turned[:rows], ups[j], width, 0, absorbed[own])
        mix(turned[:rows], table[j], width, 0, of_mean[own])


@compiled
def add_at(scores, count, slots, first_slot, of_mean):
    """Add what the mean gives to products (M, n) of the slots that they are of, in a block that
    begins at `first_slot`."""
    without_gaps = slots[count - 1] - slots[0] == count - 1
    for m in range(scores.shape[0]):
        row, part = scores[m], of_mean[m, slots[0] - first_slot :]
        if without_gaps:
            for n in range(count):
                row[n] += part[n]
        else:
            for n in range(count):
                row[n] += part[slots[n] - slots[0]]


@compiled
def turn_in_blocks(key_value, mean, first_new, cos, sin, head_dim, out):
    """New [k; v] (B, T, 2*J*D) about their mean, with keys rotated by their places in blocks.

    Args:
        mean: (2*J*D,), float32 as all floating-point tensors.
        first_new: slot of each sequence's first new token, (B,); below 0 for padding.
        cos, sin: by place, (slots of a block, rotary dim / 2).
        out: filled in, (B * T, 2*J*D).
    """
    B, T, width = key_value.shape
    slots, half = cos.shape
    for b in range(B):
        for t in range(T):
            x, to = key_value[b, t], out[b * T + t]
            for k in range(width):
                to[k] = x[k] - mean[k]
            place = (max(first_new[b], 0) + t) % slots
            c, s = cos[place], sin[place]
            for first in range(0, width // 2, head_dim):
                key = to[first : first + head_dim]
                for k in range(half):
                    x1, x2 = key[k], key[half + k]
                    key[k] = x1 * c[k] - x2 * s[k]
                    key[half + k] = x2 * c[k] + x1 * s[k]
