"""Compiled functions that decode runs of numbers that lie whole in rows: floats, and 8 uniform
bits. They go a vector at a time, and what is left of a run one number at a time."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ....codecs.row_layout import Kind
from ...host_code import compiled
from .registers import REGISTERS
from .vectors import BYTE, INT16, floats, fused, integers, of_numbers, spread, store

FLOAT32, FLOAT16, BFLOAT16 = Kind.FLOAT32.number, Kind.FLOAT16.number, Kind.BFLOAT16.number
E4M3, UNIFORM8 = Kind.E4M3.number, Kind.UNIFORM8.number
LANES = REGISTERS.lanes
HALF_SCALE = 2.0**112
"""How many times too small a float16 is whose bits stand in the place of those of a float32."""
HALF_INFINITY, INFINITY = 0x7C00 << 13, 0x7F800000
"""Bits of infinity, and the least ones of what is no number: of a float16 in that place, and of a
float32."""


@compiled
def word_of(arena, at, count):
    """Up to 8 bytes from byte `at` on, the first one lowest."""
    word = np.uint64(0)
    for i in range(np.uint64(count)):
        word |= np.uint64(arena[at + i]) << (np.uint64(8) * i)
    return word


def _all(number: int) -> Any:
    return of_numbers([number] * LANES)


def _words(builder: Any, place: Any, kind: Any) -> Any:
    """Whole numbers of a kind from a pointer on, as integers of 32 bits."""
    found = builder.load(builder.bitcast(place, ir.VectorType(kind, LANES).as_pointer()), align=1)
    return builder.zext(found, integers(LANES))


def _float16_vector(builder: Any, place: Any) -> Any:
    words = _words(builder, place, INT16)
    bits = builder.shl(builder.and_(words, _all(0x7FFF)), _all(13))
    scale = ir.Constant(floats(LANES), [HALF_SCALE] * LANES)
    number = builder.fmul(builder.bitcast(bits, floats(LANES)), scale)
    number = builder.bitcast(number, integers(LANES))
    is_none = builder.icmp_signed(">=", bits, _all(HALF_INFINITY))
    number = builder.select(is_none, builder.or_(bits, _all(INFINITY)), number)
    sign = builder.shl(builder.and_(words, _all(0x8000)), _all(16))
    return builder.bitcast(builder.or_(number, sign), floats(LANES))


def _bfloat16_vector(builder: Any, place: Any) -> Any:
    words = builder.shl(_words(builder, place, INT16), _all(16))
    return builder.bitcast(words, floats(LANES))


def _float32_vector(builder: Any, place: Any) -> Any:
    return builder.load(builder.bitcast(place, floats(LANES).as_pointer()), align=1)


def _vector_decoder(load: Any) -> Any:
    """A compiled function that decodes a vector of numbers. Its arguments: bytes, and the place of
    the first number in them; where the numbers go, and the first of them there."""

    @intrinsic
    def decode(typing, arena, at, out, first):
        def make(context, builder, signature, arguments):
            data, to = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data
                for i in (0, 2)
            )
            found = load(builder, builder.gep(data, [arguments[1]]))
            store(builder, found, builder.gep(to, [arguments[3]]))

        return types.void(arena, at, out, first), make

    return decode


_float16s, _bfloat16s, _float32s = (
    _vector_decoder(load) for load in (_float16_vector, _bfloat16_vector, _float32_vector)
)


def _uniform8s_of(typing, arena, at, step, lowest, out, first):
    """The same of 8 uniform bits, with numbers (code * step + lowest)."""

    def make(context, builder, signature, arguments):
        data, to = (
            context.make_array(signature.args[i])(context, builder, arguments[i]).data
            for i in (0, 4)
        )
        codes = _words(builder, builder.gep(data, [arguments[1]]), BYTE)
        codes = builder.sitofp(codes, floats(LANES))
        step, lowest = (spread(builder, x, LANES) for x in arguments[2:4])
        store(builder, fused(builder, codes, step, lowest), builder.gep(to, [arguments[5]]))

    return types.void(arena, at, types.float32, types.float32, out, first), make


_uniform8s: Any = intrinsic(_uniform8s_of)


@compiled
def _float16(half):
    bits = (half & np.uint32(0x7FFF)) << np.uint32(13)
    x = np.uint32(bits).view(np.float32) * np.float32(HALF_SCALE)
    if bits >= np.uint32(HALF_INFINITY):
        x = np.uint32(bits | np.uint32(INFINITY)).view(np.float32)
    return -x if half & np.uint32(0x8000) else x


@compiled
def decode_floats(kind, arena, places, count, first, channel, channels, tables, out):
    """A run of floats of a kind, from byte `first` of each row on."""
    vectors, lanes = np.uint64(channels // LANES), np.uint64(LANES)
    left = range(vectors * lanes, np.uint64(channels))
    for n in range(count):
        at, c = places[n] + np.uint64(first), np.uint64(channel)
        if kind == FLOAT16:
            for i in range(vectors):
                _float16s(arena, at + np.uint64(2) * lanes * i, out[n], c + lanes * i)
            for k in left:
                out[n, c + k] = _float16(np.uint32(word_of(arena, at + np.uint64(2) * k, 2)))
        elif kind == BFLOAT16:
            for i in range(vectors):
                _bfloat16s(arena, at + np.uint64(2) * lanes * i, out[n], c + lanes * i)
            for k in left:
                word = np.uint32(word_of(arena, at + np.uint64(2) * k, 2)) << np.uint32(16)
                out[n, c + k] = np.uint32(word).view(np.float32)
        elif kind == FLOAT32:
            for i in range(vectors):
                _float32s(arena, at + np.uint64(4) * lanes * i, out[n], c + lanes * i)
            for k in left:
                word = np.uint32(word_of(arena, at + np.uint64(4) * k, 4))
                out[n, c + k] = word.view(np.float32)
        else:
            for k in range(np.uint64(channels)):
                out[n, c + k] = tables.byte_floats[kind - E4M3, arena[at + k]]


@compiled
def decode_uniform8(arena, places, count, gains, first, channel, channels, tables, out):
    """A run of 8 uniform bits, whose rows have gains."""
    vectors, lanes = np.uint64(channels // LANES), np.uint64(LANES)
    for n in range(count):
        at, c, gain = places[n] + np.uint64(first), np.uint64(channel), gains[n]
        step, lowest = tables.uniform[0] * gain, tables.uniform[1] * gain
        for i in range(vectors):
            _uniform8s(arena, at + lanes * i, step, lowest, out[n], c + lanes * i)
        for k in range(vectors * lanes, np.uint64(channels)):
            out[n, c + k] = np.float32(arena[at + k]) * step + lowest
