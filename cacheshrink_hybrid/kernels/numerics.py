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


def _itself(x):
    return x


constant = _itself if INTERPRET else tl.constexpr
"""Around an element of a constant tuple that one device function gives to another: before Triton
3.8 the compiler takes it for a constant only so. The interpreter gives on what it is given."""

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


@triton.jit
def float8_code(x):
    """Code of the nearest e4m3 number of x in [-448, 448], to even; 0x7F for NaN.

    By arithmetic, because not every device converts, and the interpreter errs.
    """
    magnitude = tl.abs(x)
    exponent = ((magnitude.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
    exponent = tl.maximum(exponent, -6)
    # Adding and taking away 1.5 * 2**23 rounds to whole numbers: of 2**(exponent - 3) here.
    inverse = ((127 + 3 - exponent) << 23).to(tl.float32, bitcast=True)
    steps = (magnitude * inverse + 12582912.0) - 12582912.0
    steps = steps.to(tl.int32)
    # 8 steps or more are normal numbers; carrying into the exponent happens by itself.
    code = tl.where(steps >= 8, ((exponent + 6) << 3) + steps, steps)
    code = code | tl.where(x < 0, 0x80, 0)
    return tl.where(x == x, code, 0x7F).to(tl.uint8)


@triton.jit
def float8_value(code, NATIVE: tl.constexpr):
    """Numbers of e4m3 codes, float16, which holds them all."""
    if NATIVE:
        return code.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        # The same bits in the place of a float16 are the number, 2**8 times too small.
        word = code.to(tl.uint16)
        bits = ((word & 0x80) << 8) | ((word & 0x7F) << 7)
        x = bits.to(tl.float16, bitcast=True) * 256.0
        return tl.where((word & 0x7F) == 0x7F, float("nan"), x)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, exact to float32."""
    return tl.maximum(x, 0.0) + log1p(tl.exp2(-tl.abs(x) * LOG2_E))


@triton.jit
def log1p(x):
    """log(1 + x), 0 <= x <= 1, also where 1 + x rounds."""
    u = 1.0 + x
    # Kahan's correction: log(u) is that of the rounded sum, scaled by what rounding did to x.
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0 + (u == 1.0).to(tl.float32))))
