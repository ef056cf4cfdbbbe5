"""Looking up the levels of 16 neighbouring channels at once, on CPUs that permute 16 numbers by
one instruction (AVX-512)."""

from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
INTEGERS = ir.VectorType(ir.IntType(32), LANES)
FLOATS = ir.VectorType(ir.FloatType(), LANES)


def looks_up_16() -> bool:
    """Whether functions are compiled for such a CPU."""
    settings: Any = config
    as_host = settings.CPU_NAME is None and settings.CPU_FEATURES is None
    return as_host and binding.get_host_cpu_features().get("avx512f", False)


def _splat(number: int) -> Any:
    return ir.Constant(INTEGERS, [number] * LANES)


def _spread(builder: Any, value: Any, kind: Any) -> Any:
    """A value in all lanes."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, _splat(0))


def _load_word(typing, array, at):
    """The 8 bytes of an array of bytes from `at` on, the first one lowest."""

    def make(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(array, at), make


load_word: Any = intrinsic(_load_word)


def _codes(builder: Any, word: Any, bits: int) -> Any:
    """Codes of 16 channels of so many bits, of a plane's 64-bit word."""
    per_half = 32 // bits
    halves = ir.Constant(INTEGERS, ir.Undefined)
    for i in range(-(-LANES // per_half)):
        half = builder.trunc(builder.lshr(word, word.type(32 * i)), ir.IntType(32))
        halves = builder.insert_element(halves, half, ir.IntType(32)(i))
    places = ir.Constant(INTEGERS, [lane // per_half for lane in range(LANES)])
    shifts = ir.Constant(INTEGERS, [lane % per_half * bits for lane in range(LANES)])
    words = builder.shuffle_vector(halves, ir.Constant(INTEGERS, ir.Undefined), places)
    return builder.and_(builder.lshr(words, shifts), _splat(2**bits - 1))


def _looked_up(builder: Any, codes: Any, table: Any, bits: int) -> Any:
    """Numbers of a table (2**bits,), at least 16, by codes."""
    parts = [
        builder.load(builder.gep(table, [ir.IntType(32)(part)]), align=4)
        for part in range(max(1, 2**bits // LANES))
    ]
    one = ir.FunctionType(FLOATS, [FLOATS, INTEGERS])
    two = ir.FunctionType(FLOATS, [FLOATS, INTEGERS, FLOATS])
    if len(parts) == 1:
        name = "llvm.x86.avx512.permvar.sf.512"
        permute = cgutils.get_or_insert_function(builder.module, one, name)
        return builder.call(permute, [parts[0], codes])
    name = "llvm.x86.avx512.vpermi2var.ps.512"
    permute = cgutils.get_or_insert_function(builder.module, two, name)
    found = [
        builder.call(permute, [parts[i], codes, parts[i + 1]]) for i in range(0, len(parts), 2)
    ]
    if len(found) == 1:
        return found[0]
    upper = builder.icmp_unsigned(">=", codes, _splat(2 * LANES))
    return builder.select(upper, found[1], found[0])


def look_up_16(low: int, high: int) -> Any:
    """A compiled function that looks up channels of `low + high` bits.

    Its arguments: words of up to 16 channels in the plane of the low bits and in that of the high
    ones, uint64; levels (16 or more,) float32 by code, and their factor; where the channels go,
    (n,) float32; the first of them there, and how many there are, uint64.
    """

    @intrinsic
    def look_up(typing, lows, highs, levels, factor, out, first, count):
        def make(context, builder, signature, arguments):
            lows, highs, levels, factor, out, first, count = arguments
            table, to = (
                context.make_array(signature.args[i])(context, builder, array).data
                for i, array in ((2, levels), (4, out))
            )
            codes = _codes(builder, lows, low)
            if high:
                above = builder.shl(_codes(builder, highs, high), _splat(low))
                codes = builder.or_(codes, above)
            table = builder.bitcast(table, FLOATS.as_pointer())
            found = _looked_up(builder, codes, table, low + high)
            found = builder.fmul(found, _spread(builder, factor, FLOATS))
            to = builder.bitcast(builder.gep(to, [first]), FLOATS.as_pointer())
            lanes = ir.Constant(INTEGERS, list(range(LANES)))
            counts = _spread(builder, builder.trunc(count, ir.IntType(32)), INTEGERS)
            mask = builder.icmp_unsigned("<", lanes, counts)
            store = ir.FunctionType(ir.VoidType(), [FLOATS, to.type, ir.IntType(32), mask.type])
            name = "llvm.masked.store.v16f32.p0"
            write = cgutils.get_or_insert_function(builder.module, store, name)
            builder.call(write, [found, to, ir.IntType(32)(4), mask])

        taken = lows, highs, levels, factor, out, first, count
        return types.void(*taken), make

    return look_up
