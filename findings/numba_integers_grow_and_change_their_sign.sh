#!/usr/bin/env bash
# numba 0.68.1: arithmetic of NumPy's narrow integers neither wraps nor keeps its type in compiled code,
# and np.uint64 + 1 may be negative.
#
# numba computes with at least 64 bits, signed as soon as one side is, and takes a literal for signed
# (its NBEP 1). NumPy keeps uint32 + uint32 at uint32, and uint64 + 1 at uint64.
# Seen: three rounds of x * uint32 + uint32 give 2630631676 with NumPy and 652858001107730684 with
# numba; 2**63 + 1 as a uint64 plus 1 gives 9223372036854775810 and -9223372036854775806. With
# np.uint32() and np.uint64() around each step both give NumPy's.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.3.5
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
import numba
import numpy as np


def hashed(x):
    for _ in range(3):
        x = x * np.uint32(1664525) + np.uint32(1013904223)
    return x


def hashed_by_steps(x):
    for _ in range(3):
        x = np.uint32(x * np.uint32(1664525) + np.uint32(1013904223))
    return x


def successor(x):
    return x + 1


def successor_by_type(x):
    return np.uint64(x + np.uint64(1))


with np.errstate(over="ignore"):
    for function, argument, by_numpy, by_numba in (
        (hashed, np.uint32(7), 2630631676, 652858001107730684),
        (hashed_by_steps, np.uint32(7), 2630631676, 2630631676),
        (successor, np.uint64(2**63 + 1), 2**63 + 2, 2 - 2**63),
        (successor_by_type, np.uint64(2**63 + 1), 2**63 + 2, 2**63 + 2),
    ):
        compiled = numba.njit(function)
        found = int(function(argument)), int(compiled(argument))
        print(f"{function.__name__}: {found[0]} by NumPy, {found[1]} by numba, "
              f"as {compiled.nopython_signatures[0].return_type}")
        assert found == (by_numpy, by_numba), "changed"
PYTHON
