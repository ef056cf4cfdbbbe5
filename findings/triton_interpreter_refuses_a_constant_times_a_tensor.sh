#!/usr/bin/env bash
# triton 3.9.0: in the interpreter a constant times a tensor is no argument of tl.ceil, where the
# constant is a global tl.constexpr and stands on the left.
#
# The compiler takes it, and so does the interpreter if the product has a name first, or the tensor
# stands on the left. Otherwise a kernel that runs on a GPU fails in its tests on a CPU, with an error
# that does not name the constant. Versions 3.4.0 and 3.6.0 compute it.
# Seen: InterpreterError, cannot convert [...] of type tensor to tensor; and right numbers otherwise.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 triton==3.9.0 numpy==2.3.5
cd "$work"
# Kernels are read from their file, so they need one.
cat > kernels.py <<'PYTHON'
import triton
import triton.language as tl

EIGHT = tl.constexpr(8)


@triton.jit
def constant_first(p, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p + o, tl.ceil(EIGHT * tl.load(p + o)))


@triton.jit
def tensor_first(p, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p + o, tl.ceil(tl.load(p + o) * EIGHT))


@triton.jit
def named(p, N: tl.constexpr):
    o = tl.arange(0, N)
    product = EIGHT * tl.load(p + o)
    tl.store(p + o, tl.ceil(product))
PYTHON
"$work/env/bin/python" - <<'PYTHON'
import sys

sys.path.insert(0, ".")
import kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

source = ASTSource(fn=kernels.constant_first, signature={"p": "*fp32"}, constexprs={(1,): 4})
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
print("compiled:", "ptx" in compiled.asm)
PYTHON
TRITON_INTERPRET=1 "$work/env/bin/python" - <<'PYTHON'
import sys

sys.path.insert(0, ".")
import kernels
import torch
from triton.runtime.errors import InterpreterError

for kernel in (kernels.tensor_first, kernels.named):
    x = torch.tensor([0.3, 1.0, 1.1, 2.0])
    kernel[(1,)](x, N=4)
    assert x.tolist() == [3.0, 8.0, 9.0, 16.0], "changed"
try:
    kernels.constant_first[(1,)](torch.ones(4), N=4)
except InterpreterError as error:
    print("interpreted:", error)
    assert "cannot convert" in str(error), "changed"
else:
    raise AssertionError("changed")
PYTHON
