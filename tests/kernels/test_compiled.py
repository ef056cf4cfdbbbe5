"""Kernels compiled ahead of time: no spills, shared memory within limits, registers as
committed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.compile_kernels import ROOM, TABLE, WIDE_LOAD, Case, compare, measure, meta

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


def test_hot_kernels_say_what_their_speed_rests_on() -> None:
    """Matrix units, copies that do not wait and loads of 16 bytes where rows are read; loads of 16
    bytes where states are. Appending loads a few numbers."""
    pytest.importorskip("triton")
    from scripts.kernel_cases import CASES, DECODE

    for case in CASES:
        if not case.hot or case.name.startswith(("latent_append", "conv_update_project")):
            continue
        assert WIDE_LOAD in case.needs, case.name
        if case.name.startswith("latent_decode"):
            assert set(DECODE) <= set(case.needs), case.name


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


def test_the_worst_launch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from cacheshrink_hybrid.kernels.launch import launch

    class Kernel:
        __name__ = "kernel"

    launches = iter([(40, 512), (30, 1024)])

    def compiled(*_) -> dict:
        registers, shared = next(launches)
        sizes = {"registers": registers, "shared_bytes": shared}
        return {**sizes, "spilled_bytes": 0, "num_warps": 4, "ptx": ""}

    monkeypatch.setattr("scripts.compile_kernels.compile_launch", compiled)

    def twice() -> None:
        for _ in range(2):
            launch(Kernel(), (1,), p=meta(4))

    table, faults = measure([Case("case", twice)], [90])
    assert faults == []
    row = table["case/kernel/sm_90"]
    assert (row["registers"], row["shared_bytes"]) == (40, 1024)


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
