"""Compiled: room for rows of numbers that begin with lines of the cache, as vectors best do."""

import numpy as np

from ...host_code import compiled

VECTOR = 16
"""Numbers of a vector, and of a line of the cache."""


@compiled
def up(number, unit):
    """The next multiple of a unit."""
    return (number + unit - 1) // unit * unit


@compiled
def lines(count, width):
    """Rows (count, width) of anything, that begin with a line of the cache, and lie so far apart
    that vectors of them do."""
    stride = up(width, VECTOR)
    room = np.empty(count * stride + VECTOR, np.float32)
    first = (-room.ctypes.data // 4) % VECTOR
    return room[first : first + count * stride].reshape((count, stride))
