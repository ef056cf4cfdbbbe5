"""Compile the kernels ahead of time, for GPUs that need not be there, and check what comes out.

    python -m scripts.compile_kernels                 # what changed, against the committed table
    python -m scripts.compile_kernels --write         # the same, and renew the table
    python -m scripts.compile_kernels --all           # everything, changed or not
    python -m scripts.compile_kernels --keys          # only say what changed, compile nothing

Each case is launched on paper with real sizes; what its launcher asks for is compiled for compute
capability 9.0 (H100, H200) and 8.0 (A100). A kernel must fit the shared memory of a block, must not
spill registers where it is marked hot, and must use the instructions that its speed rests on. The
table of registers, spills and shared memory is committed, each row with a key of the launches that
it was compiled from: while the key is the same, so is the row. With another version of Triton the
table is printed but not compared. Needs triton, but neither a GPU nor a CUDA toolkit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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


def source_of(item: Launch) -> Any:
    """What Triton compiles for a launch: kernel, types, constants, and which numbers 16 divides."""
    from triton.compiler import ASTSource

    kernel = item.kernel
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes = {}
    for i, parameter in enumerate(kernel.params):
        value = item.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = POINTER[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_launch(item: Launch, capability: int) -> dict[str, Any]:
    """Compile one launch; registers, spilled bytes, shared memory and PTX."""
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(
        source_of(item),
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


@dataclass(frozen=True)
class Variant:
    """The launches of one case for one capability."""

    case: Case
    capability: int
    launches: list[Launch]

    def row_name(self, item: Launch) -> str:
        return f"{self.case.name}/{item.kernel.__name__}/sm_{self.capability}"

    @property
    def key(self) -> str:
        """Of all that the variant's rows, and what is checked of them, follow from; the hash of a
        source is Triton's own, of the kernel's text and of all that it calls."""
        compiled = [(source_of(i).hash(), i.num_warps, i.num_stages) for i in self.launches]
        checked = self.case.hot, self.case.needs
        return hashlib.sha256(repr((compiled, checked)).encode()).hexdigest()[:16]

    def rows_in(self, table: dict[str, dict]) -> dict[str, dict]:
        """Its rows of a table, if they are of these launches as they are now; else none."""
        rows = {name: table.get(name, {}) for name in map(self.row_name, self.launches)}
        key = self.key
        return rows if all(row.get("key") == key for row in rows.values()) else {}


def variants(cases: list[Case], capabilities: list[int]) -> Iterator[Variant]:
    for case in cases:
        for capability in capabilities if case.everywhere else capabilities[:1]:
            with recording(capability) as launches:
                case.run()
            yield Variant(case, capability, launches)


def changed(
    cases: list[Case], capabilities: list[int], committed: dict[str, dict]
) -> tuple[list[Variant], dict[str, dict]]:
    """Variants that the committed rows are not of, and the rows of all others."""
    due, kept = [], {}
    for variant in variants(cases, capabilities):
        rows = variant.rows_in(committed)
        kept |= rows
        if not rows:
            due.append(variant)
    return due, kept


def measure(due: list[Variant]) -> tuple[dict[str, dict], list[str]]:
    """Table by `name/kernel/capability`, and what is wrong."""
    table: dict[str, dict] = {}
    faults = []
    for variant in due:
        case, capability, ptx = variant.case, variant.capability, ""
        for item in variant.launches:
            name = variant.row_name(item)
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


def stale(due: list[Variant], cases: list[Case], committed: dict[str, dict]) -> list[str]:
    """What of the committed table is not of the kernels as they are."""
    known = {case.name for case in cases}
    return [
        *(f"{variant.case.name}/sm_{variant.capability}: not compiled as it is" for variant in due),
        *(f"{name}: of no case" for name in committed if name.split("/")[0] not in known),
    ]


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
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    parser.add_argument("--sm", type=int, nargs="+", default=[90, 80], choices=sorted(SHARED_LIMIT))
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--write", action="store_true", help="renew the committed table")
    way.add_argument("--all", action="store_true", help="compile what has not changed as well")
    way.add_argument("--keys", action="store_true", help="compile nothing; changes are faults")
    arguments = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler; unset it")
    import triton

    from .kernel_cases import CASES

    cases = [case for case in CASES if case.name.startswith(arguments.only)]
    if not cases:
        parser.error(f"no case begins with {arguments.only!r}; there are {[c.name for c in CASES]}")
    committed = json.loads(TABLE.read_text())
    comparable = committed["triton"] == triton.__version__
    rows = committed["kernels"] if comparable else {}
    due, kept = changed(cases, arguments.sm, {} if arguments.all else rows)
    if arguments.keys:
        table, faults = kept, stale(due, CASES, rows)
    else:
        table, faults = measure(due)
        print(report(table))
        if not arguments.write:
            faults += compare(table, committed)
    for fault in faults:
        print(f"fault: {fault}")
    if arguments.write and not faults:
        names = {case.name for case in CASES}
        keys = {v.row_name(item): v.key for v in due for item in v.launches}
        renewed = {name: {**row, "key": keys[name]} for name, row in table.items()}
        kept = {name: row for name, row in rows.items() if name.split("/")[0] in names}
        content = {
            "triton": triton.__version__,
            "kernels": dict(sorted({**kept, **renewed}.items())),
        }
        TABLE.write_text(json.dumps(content, indent=1) + "\n")
        print(f"wrote {TABLE}")
    print(json.dumps({"cases": len(cases), "compiled": len(due), "faults": len(faults)}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
