"""Compiled functions that decode blocks of rows. Places and codes are unsigned numbers, so that no
index is looked at for being negative."""

import numpy as np

from ....codecs.row_layout import Kind
from ...host_code import compiled
from .narrow_lookup import narrow_decoder
from .registers import REGISTERS, Lookup
from .whole_numbers import decode_floats, decode_uniform8, word_of
from .wide_lookup import LANES, LOAD_WORD, look_up_16

UNIFORM8 = Kind.UNIFORM8.number
LEVELS6, LEVELS5, LEVELS4 = Kind.LEVELS6.number, Kind.LEVELS5.number, Kind.LEVELS4.number
LEVELS3, LEVELS2 = Kind.LEVELS3.number, Kind.LEVELS2.number


def pairs_decoder(low: int, high: int):
    """A function that decodes runs of `low + high` bits of rows with gains, eight channels at a
    time, on any CPU.

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
                lows = word_of(arena, at_low + octet * np.uint64(low), low)
                highs = word_of(arena, at_high + octet * np.uint64(high), high)
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


def lookup_decoder(low: int, high: int):
    """The same for wide registers, 16 channels at a time; up to 15 numbers behind a run are written
    as well."""
    look_up, load_low, load_high = look_up_16(low, high), LOAD_WORD[low], LOAD_WORD[high or 1]
    by_low, by_high = np.uint64(2 * low), np.uint64(2 * high)
    bits, step = low + high, np.uint64(LANES)

    @compiled
    def decode(arena, places, count, gains, p_low, p_high, channel, channels, tables, out):
        levels = tables.levels[bits - 1]
        left = np.uint64(channels % LANES)
        for n in range(count):
            at_low, at_high = places[n] + np.uint64(p_low), places[n] + np.uint64(p_high)
            first, gain, highs = np.uint64(channel), gains[n], np.uint64(0)
            for _ in range(channels // LANES):
                if high:
                    highs = load_high(arena, at_high)
                look_up(load_low(arena, at_low), highs, levels, gain, out[n], first)
                at_low += by_low
                at_high += by_high
                first += step
            if left:
                # A plane may end with the arena.
                lows = word_of(arena, at_low, (left * by_low + np.uint64(15)) // step)
                if high:
                    highs = word_of(arena, at_high, (left * by_high + np.uint64(15)) // step)
                look_up(lows, highs, levels, gain, out[n], first)

    return decode


DECODERS = {
    Lookup.WIDE: lookup_decoder,
    Lookup.NARROW: narrow_decoder,
    Lookup.PAIRS: pairs_decoder,
}
_levels_decoder = DECODERS[REGISTERS.lookup]
_levels1, _levels2, _levels3 = (_levels_decoder(*bits) for bits in ((1, 0), (2, 0), (2, 1)))
_levels4, _levels5, _levels6 = (_levels_decoder(*bits) for bits in ((4, 0), (4, 1), (4, 2)))


@compiled
def decode_block(arena, places, count, gains, runs, tables, out):
    """Latents (count, R) of the rows that begin at `places`, whose coded channels have these gains.

    Args:
        out: filled in; 15 numbers behind a row's R may be written as well.
        runs: see `runs_view`.
        tables: see `row_tables`.
    """
    for i in range(runs.shape[0]):
        kind, channel, channels = runs[i, 0], runs[i, 1], runs[i, 2]
        low, high = runs[i, 3], runs[i, 4]
        if kind < UNIFORM8:
            decode_floats(kind, arena, places, count, low, channel, channels, tables, out)
        elif kind == UNIFORM8:
            decode_uniform8(arena, places, count, gains, low, channel, channels, tables, out)
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
