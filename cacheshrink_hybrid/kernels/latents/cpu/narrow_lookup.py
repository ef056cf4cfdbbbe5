"""Looking up the levels of 32 neighbouring channels at once, on CPUs whose registers hold 8 numbers
(AVX2).

Codes of 4 bits and more are places in registers of bytes: the four bytes of a level are looked up
apart, in tables of 16, and then joined. Shorter codes permute a register of numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...host_code import compiled
from .vectors import BYTE, FLOAT, INT16, INT32, INT64, call, floats, of_numbers, spread, store

LANES = 32
REGISTER = 8
"""Numbers of a register."""
LANE_BYTES = 16
"""Bytes are permuted, and joined with those of another register, within such lanes of one."""
LEVEL_BYTES = 4


def _bytes(values: Any) -> Any:
    """A constant vector of bytes."""
    found = list(values)
    return ir.Constant(ir.VectorType(BYTE, len(found)), found)


def _kept(builder: Any, pointer: Any, kind: Any) -> Any:
    """What a table holds from a pointer on."""
    part = builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)
    # Nothing writes to tables, so that they may stay in registers.
    part.set_metadata("invariant.load", builder.module.add_metadata([]))
    return part


def _loaded(builder: Any, pointer: Any, num_bytes: int) -> Any:
    """So many bytes, as an integer."""
    kind = ir.IntType(8 * num_bytes)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)


def _chosen(builder: Any, found: list[Any], masks: list[Any]) -> Any:
    """Of 2^n vectors those numbers whose place n masks tell, the mask of the lowest bit first."""
    for mask in masks:
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [builder.select(mask, upper, lower) for lower, upper in pairs]
    return found[0]


def _of_short_codes(
    builder: Any, lows: Any, highs: Any, levels: Any, low: int, high: int, lanes: int
) -> list[Any]:
    """Levels of codes of 1 to 3 bits, a register at a time."""

    def word(plane: Any, bits: int, first: int) -> Any:
        """The 32 bits of a plane that hold those of the channels from `first` on, in all lanes."""
        size = min(lanes * bits // 8, 4)
        at = first * bits // 32 * 4
        found = _loaded(builder, builder.gep(plane, [INT64(at)]), size)
        return spread(builder, found if size == 4 else builder.zext(found, INT32), REGISTER)

    def is_set(plane: Any, first: int) -> Any:
        """Whether the bits of channels are set, of a plane of one."""
        by = of_numbers(31 - (first + lane) % 32 for lane in range(REGISTER))
        return builder.icmp_signed(
            "<", builder.shl(word(plane, 1, first), by), of_numbers([0] * REGISTER)
        )

    def four(first: int) -> Any:
        """Four levels, twice."""
        part = _kept(builder, builder.gep(levels, [INT64(first)]), floats(4))
        return builder.shuffle_vector(part, part, of_numbers(lane % 4 for lane in range(REGISTER)))

    found = []
    for first in range(0, lanes, REGISTER):
        if low == 1:
            pair = [_kept(builder, builder.gep(levels, [INT64(i)]), FLOAT) for i in range(2)]
            both = [spread(builder, level, REGISTER) for level in pair]
            found.append(_chosen(builder, both, [is_set(lows, first)]))
            continue
        by = of_numbers((first + lane) * low % 32 for lane in range(REGISTER))
        codes = builder.lshr(word(lows, low, first), by)
        name = "llvm.x86.avx.vpermilvar.ps.256"
        parts = [call(builder, name, floats(REGISTER), four(4 * i), codes) for i in range(2**high)]
        found.append(_chosen(builder, parts, [is_set(highs, first)] if high else []))
    return found


def _of_long_codes(
    builder: Any, lows: Any, highs: Any, levels: Any, high: int, lanes: int
) -> list[Any]:
    """Levels of codes of 4 bits and `high` above them, in four vectors."""
    # Joining bytes within lanes leaves these channels side by side.
    channels = [
        lanes // 4 * (at % LANE_BYTES // 4) + at // LANE_BYTES * 4 + at % 4 for at in range(lanes)
    ]

    def of_channels(plane: Any, bits: int) -> Any:
        """For each channel the byte of a plane with its bits."""
        word = _loaded(builder, plane, lanes * bits // 8)
        copies = spread(builder, word, 8 // bits)
        found = builder.bitcast(copies, ir.VectorType(BYTE, lanes))
        order = (at // LANE_BYTES * LANE_BYTES + c * bits // 8 for at, c in enumerate(channels))
        return builder.shuffle_vector(found, found, of_numbers(order))

    def joined(a: Any, b: Any) -> tuple[Any, Any]:
        """Numbers of two vectors by turns, of the lower and of the upper half of each lane."""
        count = a.type.count
        of_lane = count * LANE_BYTES // lanes
        both = []
        for half in range(2):
            order = []
            for lane in range(0, count, of_lane):
                for i in range(of_lane // 2):
                    at = lane + half * of_lane // 2 + i
                    order += [at, count + at]
            both.append(builder.shuffle_vector(a, b, of_numbers(order)))
        return both[0], both[1]

    twice = of_channels(lows, 4)
    lower = builder.and_(twice, _bytes([0x0F, 0] * (lanes // 2)))
    pairs = builder.bitcast(twice, ir.VectorType(INT16, lanes // 2))
    by = ir.Constant(pairs.type, [4] * (lanes // 2))
    upper = builder.bitcast(builder.lshr(pairs, by), lower.type)
    codes = builder.or_(lower, builder.and_(upper, _bytes([0, 0x0F] * (lanes // 2))))

    masks = []
    if high:
        above = of_channels(highs, high)
        for k in range(high):
            bits = _bytes(1 << (c * high % 8 + k) for c in channels)
            nothing = _bytes([0] * lanes)
            masks.append(builder.icmp_unsigned("!=", builder.and_(above, bits), nothing))

    name = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b"}[lanes]
    planes = []
    for byte in range(LEVEL_BYTES):
        found = []
        for group in range(2**high):
            at = INT64((group * LEVEL_BYTES + byte) * LANE_BYTES)
            table = _kept(builder, builder.gep(levels, [at]), ir.VectorType(BYTE, LANE_BYTES))
            again = of_numbers(lane % LANE_BYTES for lane in range(lanes))
            table = builder.shuffle_vector(table, table, again)
            found.append(call(builder, name, codes.type, table, codes))
        planes.append(_chosen(builder, found, masks))
    halves = ir.VectorType(INT16, lanes // 2)
    firsts, lasts = (
        [builder.bitcast(half, halves) for half in joined(*planes[i : i + 2])] for i in (0, 2)
    )
    return [
        builder.bitcast(vector, floats(lanes // 4))
        for first, last in zip(firsts, lasts, strict=True)
        for vector in joined(first, last)
    ]


def look_up_narrow(low: int, high: int, lanes: int) -> Any:
    """A compiled function that looks up 16 or 32 channels of `low + high` bits.

    Its arguments: bytes, and the places in them of the planes of the low and of the high bits of
    these channels; a table of levels by code (64,) float32, or of their bytes (256,) for more than
    3 bits, and their factor; where the channels go, (n,) float32, and the first of them there.
    """

    @intrinsic
    def look_up(typing, arena, at_low, at_high, levels, factor, out, first):
        def make(context, builder, signature, arguments):
            _, at_low, at_high, _, factor, _, first = arguments
            data, table, to = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data
                for i in (0, 3, 5)
            )
            lows, highs = (builder.gep(data, [at]) for at in (at_low, at_high))
            if low == 4:
                found = _of_long_codes(builder, lows, highs, table, high, lanes)
            else:
                found = _of_short_codes(builder, lows, highs, table, low, high, lanes)
            to = builder.gep(to, [first])
            for i, vector in enumerate(found):
                count = vector.type.count
                scaled = builder.fmul(vector, spread(builder, factor, count))
                store(builder, scaled, builder.gep(to, [INT64(i * count)]))

        taken = arena, at_low, at_high, levels, factor, out, first
        return types.void(*taken), make

    return look_up


def narrow_decoder(low: int, high: int) -> Callable:
    """A function that decodes runs of `low + high` bits of rows with gains, 32 and 16 channels at a
    time; up to 15 numbers behind a run are written as well."""
    look_up_32, look_up_16 = (look_up_narrow(low, high, lanes) for lanes in (LANES, LANES // 2))
    bits, long_codes = low + high, low == 4
    half = np.uint64(LANES // 2)
    low_bytes, high_bytes = np.uint64(2 * low), np.uint64(2 * high)

    @compiled
    def copy(arena, at, bits, to, first):
        for i in range(np.uint64((bits + 7) // 8)):
            to[first + i] = arena[at + i]

    @compiled
    def decode_end(arena, places, count, gains, p_low, p_high, channel, channels, levels, out):
        """Less than 16 channels, for a plane may end with the arena."""
        ends, at = np.zeros(16, np.uint8), np.uint64(8)
        for n in range(count):
            copy(arena, places[n] + np.uint64(p_low), channels * low, ends, np.uint64(0))
            copy(arena, places[n] + np.uint64(p_high), channels * high, ends, at)
            look_up_16(ends, np.uint64(0), at, levels, gains[n], out[n], np.uint64(channel))

    @compiled
    def decode(arena, places, count, gains, p_low, p_high, channel, channels, tables, out):
        levels = tables.level_bytes[bits - 4] if long_codes else tables.levels[bits - 1]
        halves, left = channels // 16, channels % 16
        for n in range(count):
            at_low, at_high = places[n] + np.uint64(p_low), places[n] + np.uint64(p_high)
            first, gain = np.uint64(channel), gains[n]
            for _ in range(halves // 2):
                look_up_32(arena, at_low, at_high, levels, gain, out[n], first)
                at_low += low_bytes + low_bytes
                at_high += high_bytes + high_bytes
                first += half + half
            if halves % 2:
                look_up_16(arena, at_low, at_high, levels, gain, out[n], first)
        if left:
            p_low, p_high = p_low + 2 * low * halves, p_high + 2 * high * halves
            channel += channels - left
            decode_end(arena, places, count, gains, p_low, p_high, channel, left, levels, out)

    return decode
