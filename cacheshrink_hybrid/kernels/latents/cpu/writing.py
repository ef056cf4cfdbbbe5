"""Coding latents as rows and writing them to their slots, compiled."""

import numpy as np

from ....codecs.gains import LOST
from ....codecs.row_layout import Kind
from ...host_code import compiled, compiled_in_order, kept
from .gain_search import codes_of, gain_code

FLOAT32, FLOAT16, BFLOAT16 = Kind.FLOAT32.number, Kind.FLOAT16.number, Kind.BFLOAT16.number
E4M3, UNIFORM8 = Kind.E4M3.number, Kind.UNIFORM8.number
FLOAT_BYTES = tuple(kind.bits // 8 for kind in Kind if not kind.coded)
INFINITY = np.float32(np.inf)


@compiled_in_order
def _nearest(x, digits, smallest, limit):
    """Bits of the nearest float of |x|, to even, with so many digits behind the point; clipped.

    Args:
        smallest: exponent of the smallest normal number.
    """
    magnitude = min(abs(x), limit)
    exponent = max((np.float32(magnitude).view(np.int32) >> np.int32(23)) - np.int32(127), smallest)
    # Adding and taking away 1.5 * 2**23 rounds to whole numbers: of 2**(exponent - digits) here.
    inverse = np.int32((digits - exponent + np.int32(127)) << np.int32(23)).view(np.float32)
    steps = np.int32((magnitude * inverse + np.float32(12582912)) - np.float32(12582912))
    # Only above the smallest exponent are there 2**digits steps or more, of which the first digit
    # is not written, but carried into the exponent.
    return ((exponent - smallest) << digits) + steps


@compiled_in_order
def _float_words(kind, latent, words):
    """Bits of the floats of a run, int32."""
    if kind == FLOAT32:
        for c in range(latent.shape[0]):
            words[c] = np.float32(latent[c]).view(np.int32)
    elif kind == FLOAT16:
        for c in range(latent.shape[0]):
            sign = np.float32(latent[c]).view(np.int32) >> np.int32(16) & np.int32(0x8000)
            words[c] = sign | _nearest(latent[c], np.int32(10), np.int32(-14), np.float32(65504))
    elif kind == BFLOAT16:
        for c in range(latent.shape[0]):
            word = np.float32(latent[c]).view(np.int32)
            sign, word = word >> np.int32(16) & np.int32(0x8000), word & np.int32(0x7FFFFFFF)
            word = (word + np.int32(0x7FFF) + (word >> np.int32(16) & np.int32(1))) >> np.int32(16)
            words[c] = sign | min(word, np.int32(0x7F7F))
    elif kind == E4M3:
        for c in range(latent.shape[0]):
            sign = np.float32(latent[c]).view(np.int32) >> np.int32(24) & np.int32(0x80)
            words[c] = sign | _nearest(latent[c], np.int32(3), np.int32(-6), np.float32(448))
    else:
        for c in range(latent.shape[0]):
            sign = np.float32(latent[c]).view(np.int32) >> np.int32(24) & np.int32(0x80)
            words[c] = sign | _nearest(latent[c], np.int32(2), np.int32(-14), np.float32(57344))


@compiled
def _write_floats(kind, latent, lost, arena, words):
    """A run of floats, to its bytes; the quiet NaN of the standard where the token is lost."""
    channels = latent.shape[0]
    _float_words(kind, latent, words)
    if lost:
        nan = np.int32(0x7F)
        if kind == FLOAT32:
            nan = np.int32(0x7FC00000)
        elif kind == FLOAT16:
            nan = np.int32(0x7E00)
        elif kind == BFLOAT16:
            nan = np.int32(0x7FC0)
        words[:channels] = nan
    size = arena.shape[0] // channels
    if size == 4:
        for c in range(channels):
            for i in range(4):
                arena[4 * c + i] = np.uint8(words[c] >> np.int32(8 * i) & np.int32(0xFF))
    elif size == 2:
        for c in range(channels):
            arena[2 * c] = np.uint8(words[c] & np.int32(0xFF))
            arena[2 * c + 1] = np.uint8(words[c] >> np.int32(8) & np.int32(0xFF))
    else:
        for c in range(channels):
            arena[c] = np.uint8(words[c])


@compiled
def _write_plane(codes, channels, shift, bits, arena, at):
    """Bits of the codes from `shift` on, several neighbours to a byte."""
    per_byte = 8 // bits
    for i in range((channels + per_byte - 1) // per_byte):
        byte = 0
        for k in range(min(per_byte, channels - i * per_byte)):
            byte |= (np.int64(codes[i * per_byte + k]) >> shift & (1 << bits) - 1) << bits * k
        arena[at + i] = np.uint8(byte)


@compiled
def write_block(latents, center, costs, slots, arena, runs, coded, tables, reading):
    """`latent_append`.

    Args:
        latents: (N, R) float32.
        center: (R,) float32; of no channels for none.
        costs: (R,) float32; not looked at without gains.
        slots: (N,) int64, -1 for nowhere.
        runs: `runs_view`.
        coded: runs with a gain, see `CODED`.
        tables: `coding_tables`.
        reading: `READING`, (1,).
    """
    where, channels = reading[0], latents.shape[1]
    latent, codes = np.empty(channels, np.float32), np.empty(channels, np.uint8)
    words = np.empty(channels, np.int32)
    for n in range(latents.shape[0]):
        slot = slots[n]
        if slot < 0:
            continue
        at = slot // where.frame_tokens * where.frame_bytes + where.layer_offset
        at += slot % where.frame_tokens * where.row_bytes
        lost = False
        for c in range(channels):
            latent[c] = latents[n, c]
            if center.shape[0]:
                latent[c] -= center[c]
            lost = lost or not abs(latent[c]) < INFINITY  # sums in any order spoil np.isfinite
        if lost:
            latent[:] = 0
        gain = np.float32(1)
        if where.gain_byte >= 0:
            code = gain_code(latent, costs, coded, tables, words)
            gain = tables.gains[code]
            arena[at + where.gain_byte] = np.uint8(LOST if lost else code)
        for i in range(runs.shape[0]):
            kind, first, count = runs[i, 0], runs[i, 1], runs[i, 2]
            if kind < UNIFORM8:
                begin = at + runs[i, 3]
                to = arena[begin : begin + FLOAT_BYTES[kind] * count]
                _write_floats(kind, latent[first : first + count], lost, to, words)
                continue
            codes_of(kind, latent[first : first + count], gain, tables, words, codes)
            shift = 0
            for k in range(2):
                bits = runs[i, 5 + k]
                if bits:
                    _write_plane(codes, count, shift, bits, arena, at + runs[i, 3 + k])
                    shift += bits
        for i in range(where.after_gain, where.row_bytes):
            arena[at + i] = 0


@kept
def write_rows(*arguments):
    """`write_block`."""
    write_block(*arguments)
