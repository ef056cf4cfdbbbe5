"""Kernels compiled ahead of time: no spills, shared memory within limits, registers as
committed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.compile_kernels import ROOM, TABLE, Case, compare, measure, meta

ROOT = Path(__file__).parents[2]


def _toolchain() -> str | None:
    """Why kernels cannot be compiled here, or None."""
    try:
        import triton.backends.nvidia.compiler as nvidia
    except ImportError as error:
        return f"triton cannot compile for NVIDIA GPUs here: {error}"
    try:
        nvidia.get_ptxas(90)
    except Exception as error:  # whatever an installation without assembler raises
        return f"triton brings no assembler: {error}"
    return None


@pytest.mark.skipif(_toolchain() is not None, reason=str(_toolchain()))
def test_shipped_kernels_compile_as_committed(tmp_path: Path) -> None:
    """In a process of its own, because the interpreter takes the compiler's place in this one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "scripts.compile_kernels"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert json.loads(result.stdout.splitlines()[-1])["faults"] == 0


def test_growth_is_noticed() -> None:
    triton = pytest.importorskip("triton")
    committed = json.loads(TABLE.read_text())
    committed["triton"] = triton.__version__
    assert compare(committed["kernels"], committed) == []
    name, row = next(iter(committed["kernels"].items()))
    grown = {**row, "registers": int(row["registers"] * ROOM) + 2}
    assert compare({name: grown}, committed) == [
        f"{name}: {grown['registers']} registers, {row['registers']} before"
    ]
    assert compare({"new": row}, committed) == ["new: not in the committed table"]


def test_faults_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from cacheshrink_hybrid.kernels.launch import launch

    class Kernel:
        __name__ = "kernel"

    found = {"registers": 255, "spilled_bytes": 8, "shared_bytes": 10**6, "num_warps": 16}
    monkeypatch.setattr(
        "scripts.compile_kernels.compile_launch", lambda *_: {**found, "ptx": "ld.global.b8"}
    )
    case = Case("case", lambda: launch(Kernel(), (1,), p=meta(4)), needs=(r"ld\.global\.v4",))
    _, faults = measure([case], [90])
    assert [fault.split(":")[1] for fault in faults] == [
        " 1000000 bytes of shared memory",
        " 255 registers x 512 threads",
        " 8 bytes spilled",
        " no instruction like ld\\.global\\.v4",
    ]
