"""Looking up the levels of 16 neighbouring channels at once, on CPUs that permute 16 numbers by
one instruction (AVX-512)."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vectors import (
    INT16,
    INT32,
    INT64,
    call,
    floats,
    integers,
    load,
    of_numbers,
    spread,
    store,
)

LANES = 16
FLOATS, INTEGERS = floats(LANES), integers(LANES)
Kept = Callable[[int, int], Any]
"""Gives, of a table, the numbers from the first one on, over and over again for 16 lanes."""


def _load_word(num_bytes: int) -> Any:
    """A compiled function that loads so many bytes of an array from a place on, as a uint64, the
    first one lowest."""
    word = ir.IntType(8 * num_bytes)

    @intrinsic
    def load_word(typing, array, at):
        def make(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            place = builder.bitcast(builder.gep(data, [arguments[1]]), word.as_pointer())
            found = builder.load(place, align=1)
            return found if num_bytes == 8 else builder.zext(found, INT64)

        return types.uint64(array, at), make

    return load_word


LOAD_WORD: dict[int, Any] = {bits: _load_word(2 * bits) for bits in (1, 2, 4)}
"""By bits of a plane, what loads those of 16 channels."""


def _codes(builder: Any, word: Any, bits: int, to_bit: int = 0) -> Any:
    """Codes of 16 channels of so many bits, of a plane's word, from a bit of each lane on; other
    bits are anything."""
    words = builder.bitcast(word, ir.VectorType(INT32, 2))
    words = builder.shuffle_vector(
        words, words, of_numbers(lane * bits // 32 for lane in range(LANES))
    )
    by = of_numbers((lane * bits - to_bit) % 32 for lane in range(LANES))
    return call(builder, f"llvm.fshr.v{LANES}i32", INTEGERS, words, words, by)


def _bits(builder: Any, word: Any) -> Any:
    """Whether the bits of 16 channels are set, of a plane of one."""
    return builder.bitcast(builder.trunc(word, INT16), ir.VectorType(ir.IntType(1), LANES))


def _permuted(builder: Any, table: Any, codes: Any) -> Any:
    """Numbers of a table (16,) by codes, of whose bits the lowest 4 are looked at."""
    return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, table, codes)


def _found(builder: Any, lows: Any, highs: Any, low: int, high: int, kept: Kept) -> Any:
    """Levels of 16 channels of `low + high` bits, by words of both planes."""
    if low == 1:
        both = (builder.extract_element(kept(0, LANES), INT32(code)) for code in range(2))
        zero, one = (spread(builder, level, LANES) for level in both)
        return builder.select(_bits(builder, lows), one, zero)
    codes, number = _codes(builder, lows, low), 2**low
    if high < 2:
        found = _permuted(builder, kept(0, number), codes)
        if high:
            upper = _permuted(builder, kept(number, number), codes)
            found = builder.select(_bits(builder, highs), upper, found)
        return found
    mask = of_numbers([number - 1] * LANES)
    above = builder.and_(_codes(builder, highs, high, low), builder.not_(mask))
    codes = builder.or_(builder.and_(codes, mask), above)
    found, upper = (
        call(
            builder,
            "llvm.x86.avx512.vpermi2var.ps.512",
            FLOATS,
            kept(first, LANES),
            codes,
            kept(first + LANES, LANES),
        )
        for first in (0, 2 * LANES)
    )
    bit = builder.and_(codes, of_numbers([2 * LANES] * LANES))
    return builder.select(builder.icmp_unsigned("!=", bit, of_numbers([0] * LANES)), upper, found)


def look_up_16(low: int, high: int) -> Any:
    """A compiled function that looks up 16 channels of `low + high` bits.

    Its arguments: words of these channels in the plane of the low bits and in that of the high
    ones, uint64; levels (64,) float32 by code, and their factor; where the channels go, (n,)
    float32, and the first of them there.
    """

    @intrinsic
    def look_up(typing, lows, highs, levels, factor, out, first):
        def make(context, builder, signature, arguments):
            lows, highs, levels, factor, out, first = arguments
            table, to = (
                context.make_array(signature.args[i])(context, builder, array).data
                for i, array in ((2, levels), (4, out))
            )

            def kept(begin: int, number: int) -> Any:
                part = load(builder, builder.gep(table, [INT64(begin)]), LANES)
                # Nothing writes to tables, so that they may stay in registers.
                part.set_metadata("invariant.load", builder.module.add_metadata([]))
                again = of_numbers(lane % number for lane in range(LANES))
                return builder.shuffle_vector(part, part, again)

            found = _found(builder, lows, highs, low, high, kept)
            found = builder.fmul(found, spread(builder, factor, LANES))
            store(builder, found, builder.gep(to, [first]))

        return types.void(lows, highs, levels, factor, out, first), make

    return look_up
