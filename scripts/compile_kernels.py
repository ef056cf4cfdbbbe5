"""Compile the kernels ahead of time, for GPUs that need not be there, and check what comes out.

    python -m scripts.compile_kernels                 # compare with the committed table
    python -m scripts.compile_kernels --write         # renew the table

Each case is launched on paper with real sizes; what its launcher asks for is compiled for compute
capability 9.0 (H100, H200) and 8.0 (A100). A kernel must fit the shared memory of a block, must not
spill registers where it is marked hot, and must use the instructions that its speed rests on. The
table of registers, spills and shared memory is committed; with another version of Triton it is
printed but not compared. Needs triton, but neither a GPU nor a CUDA toolkit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacheshrink_hybrid.kernels.launch import Launch, recording

TABLE = Path(__file__).parents[1] / "tests" / "kernels" / "compiled.json"
SHARED_LIMIT = {90: 227 * 1024, 80: 163 * 1024}
REGISTERS_PER_MULTIPROCESSOR = 65536
ROOM = 1.15
"""Registers may grow by this factor before the comparison fails; fewer are always welcome."""

POINTER = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Case:
    """A name, a function that launches on tensors of the meta device, and what must be found.

    `hot` kernels may not spill. `needs` are patterns of instructions, looked for in the PTX.
    `everywhere` cases are compiled for every capability, the others for the newest only.
    """

    name: str
    run: Callable[[], object]
    hot: bool = True
    needs: tuple[str, ...] = ()
    everywhere: bool = False


MATRIX = r"\b(mma\.sync|wgmma\.mma_async)"
WARPGROUP = r"\bwgmma\.mma_async"
WIDE_LOAD = (
    r"ld\.global[.\w:]*\.(v4\.b32|v2\.b64)"
    r"|cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], 0x10"
)
WIDE_STORE = r"st\.global[.\w:]*\.(v4\.b32|v2\.b64)"
ASYNC_COPY = r"cp\.async|cp\.async\.bulk"


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def compile_launch(item: Launch, capability: int) -> dict[str, Any]:
    """Compile one launch; registers, spilled bytes, shared memory and PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = item.kernel
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list] = {}

    def described(value: Any, path: tuple[int, ...], constant: bool = False) -> Any:
        """The type of an argument, or of one within a tuple, as the launcher of Triton has it."""
        if constant or value is None or (type(value) is int and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, tuple):
            return tuple(described(part, (*path, i)) for i, part in enumerate(value))
        if isinstance(value, float):
            return "fp32"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        if isinstance(value, Tensor):
            return POINTER[value.dtype]
        return "i32" if abs(value) < 2**31 else "i64"

    signature = {
        parameter.name: described(item.arguments[parameter.name], (i,), parameter.is_constexpr)
        for i, parameter in enumerate(kernel.params)
    }
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": item.num_warps, "num_stages": item.num_stages},
    )
    ptx = compiled.asm["ptx"]
    registers, spills = _assemble(ptx, capability)
    return {
        "registers": registers,
        "spilled_bytes": spills,
        "shared_bytes": compiled.metadata.shared,
        "num_warps": compiled.metadata.num_warps,
        "ptx": ptx,
    }


def _assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Registers per thread and spilled bytes, as the assembler reports them."""
    import triton.backends.nvidia.compiler as nvidia

    suffix = "a" if capability == 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        arguments = [nvidia.get_ptxas(capability).path, "-v", f"--gpu-name=sm_{capability}{suffix}"]
        arguments += [str(source), "-o", str(source.with_suffix(".cubin"))]
        report = subprocess.run(arguments, check=True, capture_output=True, text=True).stderr
    used = re.findall(r"Used (\d+) registers", report)
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    return max(map(int, used)), sum(int(n) for pair in spilled for n in pair)


def measure(cases: list[Case], capabilities: list[int]) -> tuple[dict[str, dict], list[str]]:
    """Table by `name/kernel/capability`, and what is wrong."""
    table: dict[str, dict] = {}
    faults = []
    for case in cases:
        for capability in capabilities if case.everywhere else capabilities[:1]:
            with recording(capability) as launches:
                case.run()
            ptx = ""
            for item in launches:
                name = f"{case.name}/{item.kernel.__name__}/sm_{capability}"
                found = compile_launch(item, capability)
                ptx += found.pop("ptx")
                # A case that launches a kernel more than once is as good as its worst launch.
                known = table.get(name, found)
                table[name] = {key: max(found[key], known[key]) for key in found}
                if found["shared_bytes"] > SHARED_LIMIT[capability]:
                    faults.append(f"{name}: {found['shared_bytes']} bytes of shared memory")
                threads = 32 * found["num_warps"]
                if found["registers"] * threads > REGISTERS_PER_MULTIPROCESSOR:
                    faults.append(f"{name}: {found['registers']} registers x {threads} threads")
                if case.hot and found["spilled_bytes"]:
                    faults.append(f"{name}: {found['spilled_bytes']} bytes spilled")
            for pattern in case.needs:
                if not re.search(pattern, ptx):
                    faults.append(f"{case.name}/sm_{capability}: no instruction like {pattern}")
    return table, faults


def compare(table: dict[str, dict], committed: dict[str, Any]) -> list[str]:
    """How the table differs from the committed one."""
    import triton

    if committed["triton"] != triton.__version__:
        return []
    due = committed["kernels"]
    faults = [f"{name}: not in the committed table" for name in table if name not in due]
    for name, found in table.items():
        if name not in due:
            continue
        if found["registers"] > ROOM * due[name]["registers"]:
            faults.append(
                f"{name}: {found['registers']} registers, {due[name]['registers']} before"
            )
        if found["shared_bytes"] > ROOM * due[name]["shared_bytes"]:
            faults.append(
                f"{name}: {found['shared_bytes']} bytes of shared memory, "
                f"{due[name]['shared_bytes']} before"
            )
    return faults


def report(table: dict[str, dict]) -> str:
    """The table as Markdown. Blocks per multiprocessor follow from registers and shared memory."""
    lines = [
        "| kernel | registers | spilled bytes | shared bytes | warps | blocks per SM |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        shared = SHARED_LIMIT[int(name.rsplit("_", 1)[1])]
        by_registers = REGISTERS_PER_MULTIPROCESSOR // (row["registers"] * row["num_warps"] * 32)
        by_shared = shared // max(row["shared_bytes"], 1024)
        blocks = min(by_registers, by_shared, 64 // row["num_warps"])
        cells = [row["registers"], row["spilled_bytes"], row["shared_bytes"], row["num_warps"]]
        lines.append(f"| {name} | " + " | ".join(map(str, [*cells, blocks])) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="renew the committed table")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--sm", type=int, nargs="+", default=[90, 80], choices=sorted(SHARED_LIMIT))
    arguments = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler; unset it")
    import triton

    from .kernel_cases import CASES

    cases = [case for case in CASES if arguments.only in case.name]
    if not cases:
        parser.error(f"no case contains {arguments.only!r}; there are {[c.name for c in CASES]}")
    table, faults = measure(cases, arguments.sm)
    print(report(table))
    if arguments.write:
        kept = {}
        if TABLE.exists():
            old = json.loads(TABLE.read_text())
            kept = old["kernels"] if old["triton"] == triton.__version__ else {}
        names = {case.name for case in CASES}
        kept = {name: row for name, row in kept.items() if name.split("/")[0] in names}
        content = {"triton": triton.__version__, "kernels": dict(sorted({**kept, **table}.items()))}
        TABLE.write_text(json.dumps(content, indent=1) + "\n")
        print(f"wrote {TABLE}")
    else:
        faults += compare(table, json.loads(TABLE.read_text()))
    for fault in faults:
        print(f"fault: {fault}")
    print(json.dumps({"cases": len(cases), "kernels": len(table), "faults": len(faults)}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
