#!/usr/bin/env bash
# numba 0.68.1: a function compiled without fastmath takes the fastmath of whoever calls it first,
# and keeps it for everybody else.
#
# Adding and taking away 1.5 * 2^23 rounds a float32 to a whole number, which only holds where sums
# keep their order. The function that does so is decorated with @njit alone. Seen: called directly it
# gives 3.0 for 2.7; where a caller with fastmath was compiled before, the direct call gives 2.7 too.
# With fastmath=False said in words it gives 3.0 in both cases.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.3.5
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import numba
import numpy as np

BIG = np.float32(12582912)


def rounding(**options):
    """A function that rounds, and one that calls it with fastmath."""

    @numba.njit(**options)
    def rounded(x):
        return (x + BIG) - BIG

    @numba.njit(fastmath=True)
    def caller(x):
        return rounded(x)

    return rounded, caller


x = np.float32(2.7)
print(f"numba {numba.__version__}")
seen = {}
for name, options in (("@njit", {}), ("@njit(fastmath=False)", {"fastmath": False})):
    alone, _ = rounding(**options)
    after, caller = rounding(**options)
    seen[name] = float(alone(x)), (caller(x), float(after(x)))[1]
    print(f"{name}: {seen[name][0]:.1f}, and {seen[name][1]:.1f} after a caller with fastmath")
assert seen["@njit(fastmath=False)"] == (3.0, 3.0)
assert seen["@njit"][0] == 3.0
assert abs(seen["@njit"][1] - 2.7) < 1e-6, "changed"
PYTHON
