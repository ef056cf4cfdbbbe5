#!/usr/bin/env bash
# numba 0.68.1: np.isfinite is True for NaN where sums may be taken in another order.
#
# fastmath={"reassoc", "nsz", "contract"} allows another order and fused products; it does not say
# that there are no NaNs ("nnan"). Seen: np.isfinite(x - y) of a NaN is True under it, and False
# without; abs(x - y) < inf is False in both.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.3.5
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import numba
import numpy as np


def asking(**options):
    @numba.njit(**options)
    def finite(x, y):
        return np.isfinite(x - y), abs(x - y) < np.float32(np.inf)

    return finite


print(f"numba {numba.__version__}")
seen = {}
for name, options in (
    ("plain", {}),
    ("reordered", {"fastmath": {"reassoc", "nsz", "contract"}}),
):
    found = asking(**options)(np.float32(np.nan), np.float32(1))
    seen[name] = tuple(bool(x) for x in found)
    print(f"{name}: np.isfinite {seen[name][0]}, abs(x) < inf {seen[name][1]}")
assert seen["plain"] == (False, False)
assert seen["reordered"] == (True, False), "changed"
PYTHON
