"""Vectors of neighbouring numbers in compiled functions, as intermediate code of LLVM.

LLVM takes vectors of any length apart for CPUs whose registers are shorter. Numbers are float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

FLOAT, BYTE = ir.FloatType(), ir.IntType(8)
INT16, INT32, INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def floats(lanes: int) -> Any:
    """The type of a vector of numbers."""
    return ir.VectorType(FLOAT, lanes)


def integers(lanes: int) -> Any:
    return ir.VectorType(INT32, lanes)


def of_numbers(numbers: Iterable[int]) -> Any:
    """A constant vector of integers."""
    found = list(numbers)
    return ir.Constant(integers(len(found)), found)


def zeros(lanes: int) -> Any:
    return ir.Constant(floats(lanes), [0.0] * lanes)


def spread(builder: Any, value: Any, lanes: int) -> Any:
    """A value in all lanes."""
    one = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(one, value, INT32(0))
    return builder.shuffle_vector(one, one, of_numbers([0] * lanes))


def first_lanes(builder: Any, count: Any, lanes: int) -> Any:
    """A mask of the first lanes, as many as an integer of 64 bits says."""
    counts = spread(builder, builder.trunc(count, INT32), lanes)
    return builder.icmp_signed("<", of_numbers(range(lanes)), counts)


def load(builder: Any, pointer: Any, lanes: int, mask: Any = None) -> Any:
    """`lanes` numbers from a pointer to the first one on; 0 where a mask says no."""
    kind = floats(lanes)
    pointer = builder.bitcast(pointer, kind.as_pointer())
    if mask is None:
        return builder.load(pointer, align=4)
    name = f"llvm.masked.load.v{lanes}f32.p0"
    return call(builder, name, kind, pointer, INT32(4), mask, zeros(lanes))


def store(builder: Any, vector: Any, pointer: Any, mask: Any = None) -> None:
    """Write a vector from a pointer to its first number on; nothing where a mask says no."""
    pointer = builder.bitcast(pointer, vector.type.as_pointer())
    if mask is None:
        builder.store(vector, pointer, align=4)
        return
    name = f"llvm.masked.store.v{vector.type.count}f32.p0"
    call(builder, name, ir.VoidType(), vector, pointer, INT32(4), mask)


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A call of an intrinsic function of LLVM."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z."""
    return call(builder, f"llvm.fmuladd.v{x.type.count}f32", x.type, x, y, z)


def folded(builder: Any, vectors: Sequence[Any]) -> Any:
    """The sum of each vector, as one vector; of 2^n vectors, at most as many as they have lanes."""
    found, group = list(vectors), vectors[0].type.count
    while group > 1:
        # Groups of lanes belong to one sum each; their halves are added, of two vectors at once.
        single = len(found) == 1
        pairs = [(found[0], found[0])] if single else zip(found[::2], found[1::2], strict=True)
        lanes = found[0].type.count * (1 if single else 2)
        halves = [[i for i in range(lanes) if i % group // (group // 2) == k] for k in range(2)]
        lower, upper = (of_numbers(half) for half in halves)
        found = [
            builder.fadd(builder.shuffle_vector(a, b, lower), builder.shuffle_vector(a, b, upper))
            for a, b in pairs
        ]
        group //= 2
    return found[0]
