"""What compiled and interpreted kernels do differently, in one place.

The interpreter of Triton multiplies bfloat16 operands of `tl.dot` as integers and cuts off bits
when it stores bfloat16, so interpreted kernels compute in float32 and round by hand.
"""

# Annotations of Triton parameters must be objects, not strings: no `from __future__ import
# annotations` in modules that hold kernels.

import torch
import triton
import triton.language as tl

INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
}


def dot_dtype(operands: torch.dtype, *, wide: bool = False) -> tl.dtype:
    """Type of `tl.dot` operands, for operands given in a type.

    float32 stays float32. 16-bit operands are multiplied as float16, which holds every level of the
    codecs with more digits than bfloat16, or as bfloat16 if they may be as large (`wide`).
    """
    if INTERPRET.value or operands == torch.float32:
        return tl.float32
    return tl.bfloat16 if wide else tl.float16


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """float32 `x` as DTYPE, to nearest even, in the interpreter too."""
    if INTERPRET and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


@triton.jit
def product(a, b, acc):
    """acc + a @ b, accumulated in float32; float32 operands are not cut to tf32."""
    return tl.dot(a, b, acc, input_precision="ieee")
