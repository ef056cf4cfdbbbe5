"""Compiled: the largest number of a row, and powers of two of its numbers, vector by vector."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .tiles import LANES
from .vectors import (
    FLOAT,
    INT32,
    INT64,
    call,
    floats,
    folded,
    fused,
    integers,
    load,
    of_numbers,
    spread,
    store,
    zeros,
)

POLYNOMIAL = 1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1
"""Of 2^x for 0 <= x < 1, to 2e-7 of it; the highest power first."""


def _number(x: float) -> Any:
    return ir.Constant(floats(LANES), [x] * LANES)


def _larger(builder: Any, x: Any, y: Any) -> Any:
    """The larger one of each pair; y where x is NaN."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _power_of_two(builder: Any, x: Any) -> Any:
    """2^x, for x <= 0; 0 below 2^-126."""
    whole = call(builder, f"llvm.floor.v{LANES}f32", x.type, x)
    fraction, found = builder.fsub(x, whole), _number(POLYNOMIAL[0])
    for factor in POLYNOMIAL[1:]:
        found = fused(builder, found, fraction, _number(factor))
    # The bits of 2^n are n + 127 in the place of the exponent.
    exponent = builder.fptosi(_larger(builder, whole, _number(-127.0)), integers(LANES))
    exponent = builder.add(exponent, of_numbers([127] * LANES))
    bits = builder.shl(exponent, of_numbers([23] * LANES))
    return builder.fmul(found, builder.bitcast(bits, floats(LANES)))


def _loop(context: Any, builder: Any, kind: Any, row: Any, count: Any, step: Any) -> None:
    """`step`, of a pointer to each vector of a row."""
    data = context.make_array(kind)(context, builder, row).data
    vectors = builder.udiv(builder.add(count, INT64(LANES - 1)), INT64(LANES))
    with cgutils.for_range(builder, vectors) as loop:
        step(builder.gep(data, [builder.mul(loop.index, INT64(LANES))]))


def _largest_of(typing, row, count, least):
    """The largest of `count` numbers, filled up to a multiple of `LANES`, and of `least`."""

    def make(context, builder, signature, arguments):
        row, count, least = arguments
        found = cgutils.alloca_once(builder, floats(LANES))
        builder.store(spread(builder, least, LANES), found)

        def take(pointer: Any) -> None:
            x = load(builder, pointer, LANES)
            builder.store(_larger(builder, x, builder.load(found)), found)

        _loop(context, builder, signature.args[0], row, count, take)
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        return call(builder, name, FLOAT, builder.load(found))

    return types.float32(row, types.int64, types.float32), make


def _powers_of_two(typing, row, count, largest):
    """Each number x of a row, as above, becomes 2^(x - largest); returns their sum."""

    def make(context, builder, signature, arguments):
        row, count, largest = arguments
        total = cgutils.alloca_once(builder, floats(LANES))
        builder.store(zeros(LANES), total)
        largest = spread(builder, largest, LANES)

        def take(pointer: Any) -> None:
            x = builder.fsub(load(builder, pointer, LANES), largest)
            x = _power_of_two(builder, x)
            store(builder, x, pointer)
            builder.store(builder.fadd(x, builder.load(total)), total)

        _loop(context, builder, signature.args[0], row, count, take)
        found = folded(builder, [builder.load(total)])
        return builder.extract_element(found, INT32(0))

    return types.float32(row, types.int64, types.float32), make


largest_of: Any = intrinsic(_largest_of)
powers_of_two: Any = intrinsic(_powers_of_two)
