"""Coding latents as rows and writing them to their slots, compiled."""

import numpy as np

from ....codecs.gains import LOST
from ....codecs.row_layout import Kind
from ...host_code import compiled, compiled_in_order, kept
from .gain_search import codes_of, gain_code

FLOAT32, FLOAT16, BFLOAT16 = Kind.FLOAT32.number, Kind.FLOAT16.number, Kind.BFLOAT16.number
E4M3, UNIFORM8 = Kind.E4M3.number, Kind.UNIFORM8.number
INFINITY = np.float32(np.inf)


@compiled_in_order
def _nearest(x, digits, smallest, limit):
    """Bits of the nearest float of x, to even, with so many digits behind the point; clipped.

    Args:
        smallest: exponent of the smallest normal number.
    """
    magnitude = min(abs(x), limit)
    exponent = max(np.int32(np.float32(magnitude).view(np.int32) >> 23) - 127, smallest)
    # Adding and taking away 1.5 * 2**23 rounds to whole numbers: of 2**(exponent - digits) here.
    inverse = np.int32((digits - exponent + 127) << 23).view(np.float32)
    steps = np.int64((magnitude * inverse + np.float32(12582912)) - np.float32(12582912))
    # 2**digits steps or more are normal numbers; carrying into the exponent happens by itself.
    if steps >= 1 << digits:
        return ((exponent - smallest) << digits) + steps
    return steps


@compiled_in_order
def _write_floats(kind, latent, lost, first, channels, arena, at):
    """A run of floats; the quiet NaN of the standard where the token is lost."""
    for c in range(channels):
        x = latent[first + c]
        word = np.int64(np.float32(x).view(np.uint32))
        sign, size = word >> 31, 1
        if kind == FLOAT32:
            size = 4
            word = 0x7FC00000 if lost else word
        elif kind == FLOAT16:
            size = 2
            word = _nearest(x, 10, -14, np.float32(65504)) | sign << 15
            word = 0x7E00 if lost else word
        elif kind == BFLOAT16:
            size = 2
            word = (word + 0x7FFF + (word >> 16 & 1)) >> 16
            word = 0x7F7F | sign << 15 if word & 0x7FFF > 0x7F7F else word
            word = 0x7FC0 if lost else word
        else:
            if kind == E4M3:
                word = _nearest(x, 3, -6, np.float32(448))
            else:
                word = _nearest(x, 2, -14, np.float32(57344))
            word = 0x7F if lost else word | sign << 7
        for i in range(size):
            arena[at + size * c + i] = np.uint8(word >> 8 * i & 0xFF)


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
            code = gain_code(latent, costs, coded, tables, codes)
            gain = tables.gains[code]
            arena[at + where.gain_byte] = np.uint8(LOST if lost else code)
        for i in range(runs.shape[0]):
            kind, first, count = runs[i, 0], runs[i, 1], runs[i, 2]
            if kind < UNIFORM8:
                _write_floats(kind, latent, lost, first, count, arena, at + runs[i, 3])
                continue
            codes_of(kind, latent, first, count, gain, tables, codes)
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
