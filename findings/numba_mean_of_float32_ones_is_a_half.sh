#!/usr/bin/env bash
# numba 0.68.1: sum() and mean() of a long float32 array are other numbers in compiled code.
#
# numba adds one element after the other in the array's own type, and ones stop counting at 2^24; NumPy
# adds by halves. np.sum and np.mean of numba do as the methods do.
# Seen for 2^25 ones: sum 16777216 and mean 0.5 with numba, 33554432 and 1.0 with NumPy. With
# x.astype(np.float64) they are right, and with fastmath, which adds in lanes.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.3.5
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import numba
import numpy as np


def totals(x):
    return x.sum(), x.mean(), np.sum(x), np.mean(x)


def wide_totals(x):
    return totals_of(x.astype(np.float64))


x = np.ones(2**25, np.float32)
totals_of = numba.njit(totals)
seen = {
    "NumPy": totals(x),
    "numba": totals_of(x),
    "numba, float64": numba.njit(wide_totals)(x),
    "numba, fastmath": numba.njit(totals, fastmath=True)(x),
}
seen = {name: tuple(float(number) for number in found) for name, found in seen.items()}
for name, found in seen.items():
    print(f"{name}: sum {found[0]:.0f}, mean {found[1]}, np.sum {found[2]:.0f}, np.mean {found[3]}")
assert seen["NumPy"] == seen["numba, float64"] == (2.0**25, 1, 2.0**25, 1)
assert seen["numba"] == (2.0**24, 0.5, 2.0**24, 0.5), "changed"
PYTHON
