"""Kernels compiled ahead of time: no spills, shared memory within limits, registers as
committed."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from scripts.compile_kernels import (
    ROOM,
    SHARED_LIMIT,
    TABLE,
    WIDE_LOAD,
    Case,
    changed,
    compare,
    measure,
    meta,
    stale,
    variants,
)
from tests.subprocesses import run_python

kernel_cases = pytest.importorskip("scripts.kernel_cases", reason="needs triton")
CASES, DECODE = kernel_cases.CASES, kernel_cases.DECODE
COMMITTED = json.loads(TABLE.read_text())


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


def compile_kernels(*arguments: str, cache: Path) -> list[str]:
    """Lines of a run in a process of its own, because the interpreter takes the compiler's place in
    this one."""
    variables = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    program = "scripts.compile_kernels", *arguments
    result = run_python("-m", *program, timeout=1800, **variables)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, "\n".join([*lines[-30:], result.stderr[-4000:]])
    return lines


@pytest.mark.skipif(_toolchain() is not None, reason=str(_toolchain()))
def test_the_committed_table_is_of_the_kernels_as_they_are(tmp_path: Path) -> None:
    """What it says was checked when it was written. If this fails, a kernel, its launcher or a case
    has changed since: `python -m scripts.compile_kernels --write` compiles what did."""
    if COMMITTED["triton"] != importlib.metadata.version("triton"):
        pytest.skip(
            "the table is of another version of Triton, with which all kernels compile below"
        )
    last = compile_kernels("--keys", cache=tmp_path)[-1]
    assert json.loads(last) == {"cases": len(CASES), "compiled": 0, "faults": 0}


def test_no_kernel_takes_more_shared_memory_than_its_target_has() -> None:
    for name, row in COMMITTED["kernels"].items():
        assert row["shared_bytes"] <= SHARED_LIMIT[int(name.rsplit("_", 1)[1])], name


def test_wide_rows_find_room_on_any_device() -> None:
    """In each way of meeting keys, of 1,840 channels in mixed widths: without groups of warps no
    more shared memory than a block of threads may have since compute capability 8.6."""
    for mode in ("absorb", "reconstruct", "rotate"):
        case = f"latent_passes-{mode}-mixed-1840/"
        rows = {name: row for name, row in COMMITTED["kernels"].items() if name.startswith(case)}
        assert len(rows) >= 3  # launches
        for name, row in rows.items():
            assert row["spilled_bytes"] == 0
            assert row["shared_bytes"] <= 99 * 1024 or not name.endswith("sm_80")


@pytest.mark.slow
@pytest.mark.skipif(_toolchain() is not None, reason=str(_toolchain()))
@pytest.mark.parametrize("operation", sorted({case.name.split("-")[0] for case in CASES}))
def test_kernels_compile_with_another_triton(operation: str, tmp_path: Path) -> None:
    if COMMITTED["triton"] == importlib.metadata.version("triton"):
        pytest.skip("the committed table is of this version of Triton")
    assert json.loads(compile_kernels("--only", f"{operation}-", cache=tmp_path)[-1])["faults"] == 0


def test_hot_kernels_say_what_their_speed_rests_on() -> None:
    """Matrix units, copies that do not wait and loads of 16 bytes where rows are read; loads of 16
    bytes where states are. Appending loads a few numbers."""
    for case in CASES:
        if not case.hot or case.name.startswith(("latent_append", "conv_update_project")):
            continue
        assert WIDE_LOAD in case.needs, case.name
        if case.name.startswith(("latent_decode", "latent_passes")):
            assert set(DECODE) <= set(case.needs), case.name


def test_growth_is_noticed() -> None:
    committed = {**COMMITTED, "triton": importlib.metadata.version("triton")}
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

    table, faults = measure(list(variants([Case("case", twice)], [90])))
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
    _, faults = measure(list(variants([case], [90])))
    assert [fault.split(":")[1] for fault in faults] == [
        " 1000000 bytes of shared memory",
        " 255 registers x 512 threads",
        " 8 bytes spilled",
        " no instruction like ld\\.global\\.v4",
    ]


def test_rows_are_of_launches_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row holds for its launches alone: a change to the kernel, its constants, its warps or to
    what is checked of it makes another key."""
    from cacheshrink_hybrid.kernels.launch import launch

    class Kernel:
        __name__ = "kernel"

    class Source:
        def __init__(self, item) -> None:
            self.text = f"{kernel_text} {item.arguments}"

        def hash(self) -> str:
            return self.text

    monkeypatch.setattr("scripts.compile_kernels.source_of", Source)

    def case(tile: int = 16, warps: int = 4, **checked) -> Case:
        return Case("case", lambda: launch(Kernel(), (1,), num_warps=warps, TILE=tile), **checked)

    kernel_text = "one"
    (variant,) = variants([case()], [90])
    committed = {"case/kernel/sm_90": {"registers": 40, "key": variant.key}}
    assert changed([case()], [90], committed) == ([], committed)
    for other in (case(tile=32), case(warps=8), case(hot=False), case(needs=("mma",))):
        due, kept = changed([other], [90], committed)
        assert (len(due), kept) == (1, {})
        assert stale(due, [other], committed) == ["case/sm_90: not compiled as it is"]
    kernel_text = "two"
    assert len(changed([case()], [90], committed)[0]) == 1
    assert stale([], [], committed) == ["case/kernel/sm_90: of no case"]
