"""What is left of a layer's step once its coded rows are read, compiled: exact rows are written and
read, everything that takes part in the softmax is merged, and values are made of their channels."""

import numpy as np

from ...host_code import compiled, kept
from .products import products
from .reading import VECTOR, read_block, up
from .writing import write_block


@compiled
def _merge(total, part):
    """Log of the sum of two exponentials, and the shares that they have in it."""
    largest = max(total, part)
    if largest == -np.inf:
        return largest, np.float32(0), np.float32(0)
    old, new = np.exp(total - largest), np.exp(part - largest)
    return largest + np.log(old + new), old / (old + new), new / (old + new)


@kept
def finish_heads(query, channels, arena, kinds, tables, coded, sinks, value_up, out):
    """Heads' outputs of a layer's new tokens.

    Args:
        query: rotated, (B, T, H, D) float32, as all floating-point tensors.
        channels: of the exact rows of the new tokens, (B * T, 2*J*D).
        kinds: first and recent exact rows, see `ExactRows`; with no runs where there are none.
        tables: `coding_tables` and `row_tables`.
        coded: value channels mixed from coded rows (B, T, H, Rv), and log-sum-exp (B, T, H).
        sinks: logits without a value, (H,); of no heads for none.
        value_up: weight (J, D, Rv) and bias (J, D).
        out: (B, T, H, D).
    """
    B, T, H, D = query.shape
    mixed, sums = coded
    weight, bias = value_up
    J, _, rank = weight.shape
    heads, zeros = H // J, np.zeros((B, T, H), np.float32)
    none, no_weight = np.zeros(0, np.float32), np.zeros((0, 0, 0), np.float32)
    no_mean = no_weight, np.zeros((1, 0), np.float32), np.zeros((1, 0), np.float32)
    means, found = np.empty((2, B, T, H, D), np.float32), np.empty((2, B, T, H), np.float32)
    for i in range(2):
        kind = kinds[i]
        means[i], found[i] = 0, -np.inf
        if not kind.runs.shape[0]:
            continue
        write_block(
            channels, none, none, kind.slots, arena, kind.runs, kind.planes, kind.coded, tables[0],
            kind.place,
        )  # fmt: skip
        finish = kind.bias, none, kind.cos, kind.sin
        read_block(
            query, zeros, arena, kind.frame_table, kind.sequences, (kind.runs, kind.shares),
            tables[1], no_weight, finish, no_mean, kind.reading, (0, 1), means[i], found[i],
        )  # fmt: skip
    values = np.zeros((up(T * heads, 4), up(rank, VECTOR)), np.float32)
    made = np.zeros((D, up(T * heads, 4)), np.float32)
    shares = np.zeros((2, T * heads), np.float32)
    for b in range(B):
        for j in range(J):
            for m in range(T * heads):
                t, h = m // heads, j * heads + m % heads
                total = sums[b, t, h]
                coded_share = np.float32(1)
                shares[:, m] = 0
                for i in range(2):
                    total, old, new = _merge(total, found[i, b, t, h])
                    coded_share *= old
                    shares[:, m] *= old
                    shares[i, m] = new
                if sinks.shape[0]:
                    total, old, _ = _merge(total, sinks[h])
                    coded_share *= old
                    shares[:, m] *= old
                for k in range(rank):
                    values[m, k] = mixed[b, t, h, k] * coded_share
                for k in range(D):
                    out[b, t, h, k] = bias[j, k] * coded_share
            products(weight[j], D, values, values.shape[0], rank, made)
            for m in range(T * heads):
                t, h = m // heads, j * heads + m % heads
                for k in range(D):
                    out[b, t, h, k] += made[k, m]
                    for i in range(2):
                        out[b, t, h, k] += shares[i, m] * means[i, b, t, h, k]
