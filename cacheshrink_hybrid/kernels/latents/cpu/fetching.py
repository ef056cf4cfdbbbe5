"""Compiled: bytes are brought near before they are read."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...host_code import compiled
from .vectors import INT32, call

LINE_BYTES = 64
READ, TO_L2, DATA = INT32(0), INT32(2), INT32(1)


def _fetching(typing, arena, at):
    def make(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        call(builder, "llvm.prefetch.p0", ir.VoidType(), place, READ, TO_L2, DATA)

    return types.void(arena, at), make


_fetch_line: Any = intrinsic(_fetching)


@compiled
def fetch(arena, first, count):
    """Bring bytes of an array to the second cache, while others are worked on."""
    for at in range(first, first + count, LINE_BYTES):
        _fetch_line(arena, at)
