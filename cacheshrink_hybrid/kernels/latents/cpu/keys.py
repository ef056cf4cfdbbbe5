"""Compiled functions that make keys of decoded channels."""

import numpy as np

from ...host_code import compiled


@compiled
def own_channels(tile, count, shares, head, own):
    """The key channels of a tile that one head reads: its share of each run, side by side."""
    before = np.uint64(0)
    for i in range(shares.shape[0]):
        share = np.uint64(shares[i, 1])
        first = np.uint64(shares[i, 0] + head * shares[i, 1])
        for n in range(count):
            for k in range(share):
                own[n, before + k] = tile[n, first + k]
        before += share


@compiled
def finish_keys(keys, count, slots, turn, width, gains, epsilon, cos, sin):
    """RMS norm and rotation of keys (count, D), in place.

    Args:
        width: numbers D of a key.
        slots, turn: slot of each key, and the row of the angles that slot 0 is rotated by.
        gains: of the norm, (D,); of no number without a norm.
        cos, sin: angles by slot, (slots, rotary dim / 2).
    """
    half = np.uint64(cos.shape[1])
    for n in range(count):
        key = keys[n]
        if gains.shape[0]:
            square = np.float32(0)
            for k in range(width):
                square += key[k] * key[k]
            factor = np.float32(1) / np.sqrt(square / np.float32(width) + epsilon)
            for k in range(width):
                key[k] *= factor * gains[k]
        if half:
            c, s = cos[slots[n] + turn], sin[slots[n] + turn]
            for k in range(half):
                x, y = key[k], key[half + k]
                key[k] = x * c[k] - y * s[k]
                key[half + k] = y * c[k] + x * s[k]
