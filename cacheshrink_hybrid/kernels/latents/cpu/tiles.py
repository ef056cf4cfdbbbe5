"""Compiled products of a few rows, all sums of which stay in registers.

A tile is `rows` by `columns` sums, or vectors of sums. Matrices are two-dimensional, float32, with
the numbers of a row side by side.
"""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .registers import REGISTERS
from .vectors import FLOAT, INT64, first_lanes, folded, fused, load, spread, store, zeros

LANES, ROWS, COLUMNS = REGISTERS.lanes, REGISTERS.rows, REGISTERS.columns
"""Numbers of a vector, and the largest tile."""


def _rows(context: Any, builder: Any, kind: Any, matrix: Any, first: Any, count: int) -> list[Any]:
    """Pointers to the first numbers of `count` rows of a matrix."""
    array = context.make_array(kind)(context, builder, matrix)
    stride = cgutils.unpack_tuple(builder, array.strides)[0]
    data = builder.ptrtoint(array.data, INT64)
    return [
        builder.inttoptr(
            builder.add(data, builder.mul(builder.add(first, INT64(i)), stride)), FLOAT.as_pointer()
        )
        for i in range(count)
    ]


def _sums(builder: Any, first: list[list[Any]]) -> list[list[Any]]:
    """Variables of a tile, with what they hold first."""
    found = []
    for row in first:
        found.append([cgutils.alloca_once(builder, x.type) for x in row])
        for variable, x in zip(found[-1], row, strict=True):
            builder.store(x, variable)
    return found


def _add(builder: Any, variable: Any, x: Any, y: Any) -> None:
    builder.store(fused(builder, x, y, builder.load(variable)), variable)


def product_tile(rows: int, columns: int, lanes: int = LANES) -> Any:
    """A compiled function: out[m + i, n + k] = left[m + i] . right[n + k], of the first `width`
    numbers. Its arguments: left, m, right, n, width, out."""

    @intrinsic
    def tile(typing, left, m, right, n, width, out):
        def make(context, builder, signature, arguments):
            left, m, right, n, width, out = arguments
            kinds = signature.args
            lefts = _rows(context, builder, kinds[0], left, m, rows)
            rights = _rows(context, builder, kinds[2], right, n, columns)
            sums = _sums(builder, [[zeros(lanes)] * columns] * rows)

            def add(at: Any, mask: Any = None) -> None:
                x = [load(builder, builder.gep(row, [at]), lanes, mask) for row in lefts]
                for k in range(columns):
                    y = load(builder, builder.gep(rights[k], [at]), lanes, mask)
                    for i in range(rows):
                        _add(builder, sums[i][k], x[i], y)

            with cgutils.for_range(builder, builder.udiv(width, INT64(lanes))) as loop:
                add(builder.mul(loop.index, INT64(lanes)))
            left_over = builder.urem(width, INT64(lanes))
            with builder.if_then(builder.icmp_unsigned("!=", left_over, INT64(0)), likely=False):
                mask = first_lanes(builder, left_over, lanes)
                add(builder.sub(width, left_over), mask)
            outs = _rows(context, builder, kinds[5], out, m, rows)
            for row, pointer in zip(sums, outs, strict=True):
                total = folded(builder, [builder.load(variable) for variable in row])
                store(builder, total, builder.gep(pointer, [n]))

        return types.void(left, types.int64, right, types.int64, types.int64, out), make

    return tile


def mixing_tile(rows: int, columns: int, lanes: int = LANES) -> Any:
    """A compiled function: sums[m + i, k :] += sum over n < count of weights[m + i, n] * values[n,
    first + k :], of `columns` vectors; of one, as far as there are sums. Its arguments: weights, m,
    values, count, first, sums, k."""

    @intrinsic
    def tile(typing, weights, m, values, count, first, sums, k):
        def make(context, builder, signature, arguments):
            weights, m, values, count, first, sums, k = arguments
            kinds = signature.args
            mask, starts = None, [INT64(lanes * column) for column in range(columns)]
            if columns == 1:
                width = context.make_array(kinds[5])(context, builder, sums).shape
                left_over = builder.sub(cgutils.unpack_tuple(builder, width)[1], k)
                mask = first_lanes(builder, left_over, lanes)

            def vectors(row: Any, begin: Any) -> list[tuple[Any, Any]]:
                """Pointers to those of a row from a number on, and what they hold."""
                begin = builder.gep(row, [begin])
                pointers = [builder.gep(begin, [start]) for start in starts]
                return [(to, load(builder, to, lanes, mask)) for to in pointers]

            factors = _rows(context, builder, kinds[0], weights, m, rows)
            outs = [vectors(row, k) for row in _rows(context, builder, kinds[5], sums, m, rows)]
            held = _sums(builder, [[vector for _, vector in row] for row in outs])
            with cgutils.for_range(builder, count) as loop:
                value = _rows(context, builder, kinds[2], values, loop.index, 1)[0]
                value = builder.gep(value, [builder.add(first, k)])

                def vector(column: int) -> Any:
                    to = builder.gep(value, [starts[column]])
                    return load(builder, to, lanes, mask)

                def factor(row: int) -> Any:
                    found = builder.load(builder.gep(factors[row], [loop.index]))
                    return spread(builder, found, lanes)

                # All of the fewer ones are held, and of the others one at a time.
                if rows < columns:
                    by_row = [factor(row) for row in range(rows)]
                    for c in range(columns):
                        x = vector(c)
                        for i in range(rows):
                            _add(builder, held[i][c], by_row[i], x)
                else:
                    by_column = [vector(column) for column in range(columns)]
                    for i in range(rows):
                        y = factor(i)
                        for c in range(columns):
                            _add(builder, held[i][c], y, by_column[c])
            for row, variables in zip(outs, held, strict=True):
                for (to, _), variable in zip(row, variables, strict=True):
                    store(builder, builder.load(variable), to, mask)

        taken = weights, types.int64, values, types.int64, types.int64, sums, types.int64
        return types.void(*taken), make

    return tile
