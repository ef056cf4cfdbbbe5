"""Compiled functions that decode blocks of rows. Places and codes are unsigned numbers, so that no
index is looked at for being negative."""

import numpy as np

from ....codecs.row_layout import Kind
from ...host_code import compiled
from .lookup import LANES, load_word, look_up_16, looks_up_16

FLOAT32, FLOAT16, BFLOAT16 = Kind.FLOAT32.number, Kind.FLOAT16.number, Kind.BFLOAT16.number
E4M3, UNIFORM8 = Kind.E4M3.number, Kind.UNIFORM8.number
LEVELS6, LEVELS5, LEVELS4 = Kind.LEVELS6.number, Kind.LEVELS5.number, Kind.LEVELS4.number
LEVELS3, LEVELS2 = Kind.LEVELS3.number, Kind.LEVELS2.number


@compiled
def _word(arena, at, count):
    """Up to 8 bytes from byte `at` on, the first one lowest."""
    word = np.uint64(0)
    for i in range(np.uint64(count)):
        word |= np.uint64(arena[at + i]) << (np.uint64(8) * i)
    return word


def pairs_decoder(low: int, high: int):
    """A function that decodes runs of `low + high` bits of rows with gains, eight channels at a
    time.

    Two neighbours are looked up at once: the bits of both in the first plane, and above them those
    in the second one, are the place of their levels in a table.
    """
    first = sum(4**bits for bits in range(1, low + high))
    low_mask, high_mask = np.uint64(4**low - 1), np.uint64(4**high - 1)
    both_lows, both_highs = np.uint64(2 * low), np.uint64(2 * high)

    @compiled
    def decode(arena, places, count, gains, p_low, p_high, channel, channels, tables, out):
        levels = tables.pairs[first : first + 4 ** (low + high)]
        octets = np.uint64(channels // 8)
        for n in range(count):
            at_low, at_high = places[n] + np.uint64(p_low), places[n] + np.uint64(p_high)
            c, gain = np.uint64(channel), gains[n]
            for octet in range(octets):
                lows = _word(arena, at_low + octet * np.uint64(low), low)
                highs = _word(arena, at_high + octet * np.uint64(high), high)
                for k in range(np.uint64(4)):
                    index = (lows >> (both_lows * k)) & low_mask
                    if high:
                        index |= ((highs >> (both_highs * k)) & high_mask) << both_lows
                    out[n, c] = levels[index, 0] * gain
                    out[n, c + np.uint64(1)] = levels[index, 1] * gain
                    c += np.uint64(2)
            for k in range(octets * np.uint64(8), np.uint64(channels)):
                bit = k * np.uint64(low)
                index = np.uint64(arena[at_low + (bit >> np.uint64(3))]) >> (bit & np.uint64(7))
                index &= np.uint64(2**low - 1)
                if high:
                    bit = k * np.uint64(high)
                    other = np.uint64(arena[at_high + (bit >> np.uint64(3))])
                    other = (other >> (bit & np.uint64(7))) & np.uint64(2**high - 1)
                    index |= other << both_lows
                out[n, c] = levels[index, 0] * gain
                c += np.uint64(1)

    return decode


@compiled
def _word_at(arena, at):
    """8 bytes from byte `at` on, as far as there are so many."""
    if at + np.uint64(8) <= np.uint64(arena.shape[0]):
        return load_word(arena, at)
    return _word(arena, at, np.uint64(arena.shape[0]) - at)


def lookup_decoder(low: int, high: int):
    """The same, 16 channels at a time."""
    look_up, bits = look_up_16(low, high), low + high
    step, by_low, by_high = (np.uint64(number) for number in (LANES, 2 * low, 2 * high))

    @compiled
    def decode(arena, places, count, gains, p_low, p_high, channel, channels, tables, out):
        levels = tables.levels[bits - 1]
        for n in range(count):
            at_low, at_high = places[n] + np.uint64(p_low), places[n] + np.uint64(p_high)
            first, left, highs = np.uint64(channel), np.uint64(channels), np.uint64(0)
            while left:
                if high:
                    highs = _word_at(arena, at_high)
                number = min(left, step)
                look_up(_word_at(arena, at_low), highs, levels, gains[n], out[n], first, number)
                at_low += by_low
                at_high += by_high
                first += step
                left -= number

    return decode


_levels_decoder = lookup_decoder if looks_up_16() else pairs_decoder
_levels1, _levels2, _levels3 = (_levels_decoder(*bits) for bits in ((1, 0), (2, 0), (2, 1)))
_levels4, _levels5, _levels6 = (_levels_decoder(*bits) for bits in ((4, 0), (4, 1), (4, 2)))


@compiled
def _half(arena, at):
    return np.uint32(arena[at]) | (np.uint32(arena[at + np.uint64(1)]) << np.uint32(8))


@compiled
def _float16(half):
    # The same bits in the place of a float32 are the number, 2**112 times too small.
    bits = (half & np.uint32(0x7FFF)) << np.uint32(13)
    x = np.uint32(bits).view(np.float32) * np.float32(2.0**112)
    if bits >= np.uint32(0x7C00 << 13):
        x = np.uint32(bits | np.uint32(0x7F800000)).view(np.float32)
    return -x if half & np.uint32(0x8000) else x


@compiled
def _decode_floats(kind, arena, places, count, first, channel, channels, tables, out):
    """A run of numbers that lie whole, or of uniform levels."""
    for n in range(count):
        at, c = places[n] + np.uint64(first), np.uint64(channel)
        if kind == FLOAT16:
            for k in range(np.uint64(channels)):
                out[n, c + k] = _float16(_half(arena, at + np.uint64(2) * k))
        elif kind == BFLOAT16:
            for k in range(np.uint64(channels)):
                word = _half(arena, at + np.uint64(2) * k) << np.uint32(16)
                out[n, c + k] = np.uint32(word).view(np.float32)
        elif kind == FLOAT32:
            for k in range(np.uint64(channels)):
                word = _word(arena, at + np.uint64(4) * k, 4)
                out[n, c + k] = np.uint32(word).view(np.float32)
        elif kind == UNIFORM8:
            for k in range(np.uint64(channels)):
                code = np.float32(arena[at + k])
                out[n, c + k] = code * tables.uniform[0] + tables.uniform[1]
        else:
            for k in range(np.uint64(channels)):
                out[n, c + k] = tables.byte_floats[kind - E4M3, arena[at + k]]


@compiled
def decode_block(arena, places, count, gains, runs, tables, out):
    """Latents (count, R) of the rows that begin at `places`, whose coded channels have these gains.

    Args:
        runs: see `runs_view`.
        tables: see `row_tables`.
    """
    for i in range(runs.shape[0]):
        kind, channel, channels = runs[i, 0], runs[i, 1], runs[i, 2]
        low, high = runs[i, 3], runs[i, 4]
        if kind <= UNIFORM8:
            _decode_floats(kind, arena, places, count, low, channel, channels, tables, out)
        elif kind == LEVELS6:
            _levels6(arena, places, count, gains, low, high, channel, channels, tables, out)
        elif kind == LEVELS5:
            _levels5(arena, places, count, gains, low, high, channel, channels, tables, out)
        elif kind == LEVELS4:
            _levels4(arena, places, count, gains, low, high, channel, channels, tables, out)
        elif kind == LEVELS3:
            _levels3(arena, places, count, gains, low, high, channel, channels, tables, out)
        elif kind == LEVELS2:
            _levels2(arena, places, count, gains, low, high, channel, channels, tables, out)
        else:
            _levels1(arena, places, count, gains, low, high, channel, channels, tables, out)
        if kind == UNIFORM8:
            for n in range(count):
                for c in range(np.uint64(channel), np.uint64(channel + channels)):
                    out[n, c] *= gains[n]
