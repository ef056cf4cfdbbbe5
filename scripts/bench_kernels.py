"""Speed of the kernels on a GPU, against the bytes that they must move.

    python -m scripts.bench_kernels                # the whole sweep, about ten minutes on an H200
    python -m scripts.bench_kernels --quick        # a minute
    python -m scripts.bench_kernels --only ssd

Needs a CUDA device. First every kind of operation is checked against its reference, at a small
size (`kernel_gate`); if one is wrong nothing is timed. Then the bandwidth of a plain copy and the
rate of a large matrix product are measured, in the same process: the ceilings of every row. Each
operation is captured in a CUDA graph and replayed with a cold cache (a buffer larger than L2 is
written in between); a row is the median of the repetitions. Baselines in the same run: torch's SDPA
on full keys and values by FlashAttention, our kernel without paging, the Mamba-2 step as
transformers computes it, and the steps of mamba_ssm and fla where they are installed. A chunk of a
prompt is met in two ways, by latents where they lie and by expanded blocks, beside SDPA on full
keys and values.

A kernel meets its target if it reaches the share of the copy bandwidth that stands beside it;
shares are only judged where enough bytes are moved to hide the launch. Of the two ways of a chunk
the one that `expanding_pays` chooses must not be much slower than the other. What comes out is a
table, JSON and a plot under `--output`, and as last line one JSON object. The exit status is 1 if a
target is missed or a result is wrong, and 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from . import kernel_gate
from . import kernel_workloads as workloads
from .kernel_targets import ATTENTION_TARGETS, STATE_TARGET, is_judged, judge
from .kernel_workloads import MIXED_AT_4X, Workload
from .prefill_workloads import Chunk, chunk_over_full, chunk_over_latents


def sweep(quick: bool, device: torch.device) -> Iterator[list[Workload]]:
    """Groups of workloads, made one after the other because they fill the memory.

    Attention has the shape of Llama-3-8B (8 x 128 keys, 32 query heads; 4x is rank 512 at 16 bits,
    or 1,840 channels in mixed widths), states those of Nemotron-H-8B and Qwen3-Next.
    """
    attention = [(8, 32768), (32, 8192)] if quick else [
        (batch, context)
        for context in (1024, 8192, 32768, 131072)
        for batch in (1, 8, 32, 64, 128)
        if batch * context <= 2**21
    ]  # fmt: skip
    full = {"heads": 32, "key_heads": 8, "head_dim": 128, "device": device}
    for batch, context in attention:
        group = [workloads.full_attention(batch=batch, context=context, **full)]
        for rank in (512,) if quick else (64, 128, 256, 512):
            for codec, target in ATTENTION_TARGETS.items():
                shape = {"codec": codec, "batch": batch, "context": context, "rank": rank}
                group.append(
                    workloads.latent_attention(**shape, heads=32, device=device, target=target)
                )
            dense = {"codec": "float16", "batch": batch, "context": context, "rank": rank}
            group.append(workloads.latent_attention(**dense, heads=32, device=device, dense=True))
        for stored_rotated in (False, True):
            shape = {"batch": batch, "context": context, "rank": 64, "value_rank": 512, **full}
            group.append(workloads.per_head_attention(**shape, stored_rotated=stored_rotated))
        for mode in ("absorb", "rotate", "reconstruct"):
            shape = {"batch": batch, "context": context, "runs": MIXED_AT_4X, **full}
            group.append(workloads.joint_attention(**shape, mode=mode))
        yield group
    chunks = [(1, 32768, 512)] if quick else [
        (batch, history, num_new)
        for batch, history in ((1, 8192), (1, 32768), (1, 131072), (8, 8192))
        for num_new in (16, 64, 256, 1024)
    ]  # fmt: skip
    for batch, history, num_new in chunks:
        chunk = Chunk(batch=batch, history=history, num_new=num_new, **full)
        group = [chunk_over_full(chunk)]
        for rotated in (False, True):
            for bits in (8,) if quick else (16, 8, 4):
                group += chunk_over_latents(chunk, rank=512, bits=bits, rotated=rotated)
        yield group
    batches = (64,) if quick else (1, 8, 32, 64, 128, 256, 512)
    for batch in batches:
        shape = {"batch": batch, "heads": 128, "head_dim": 64, "groups": 8, "device": device}
        group = [workloads.torch_ssd(**shape, rank=128)]
        peer = workloads.mamba_ssm_step(**shape, rank=128)
        group += [] if peer is None else [peer]
        for rank in (128, 64, 32):
            for code in ("float32", "float16", "int8"):
                group.append(workloads.ssd(**shape, rank=rank, code=code, target=STATE_TARGET))
        yield group
    for batch in batches:
        shape = {"batch": batch, "heads": 32, "head_dim": 128, "groups": 16, "device": device}
        peer = workloads.fla_gdn_step(**shape, rank=128)
        group = [] if peer is None else [peer]
        for rank in (128, 64):
            for code in ("float32", "float16", "int8"):
                group.append(workloads.gdn(**shape, rank=rank, code=code, target=STATE_TARGET))
        yield group


def copy_bandwidth(device: torch.device, repetitions: int) -> float:
    """Bytes per second that a copy of 1 GiB moves, reading and writing."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), repetitions, device)[0]


def product_rate(device: torch.device, repetitions: int, size: int = 8192) -> float:
    """Additions and multiplications per second of a product of two large bfloat16 matrices."""
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(left)
    seconds, _ = median_seconds(lambda: torch.matmul(left, right, out=out), repetitions, device)
    return 2 * size**3 / seconds


def median_seconds(
    run: workloads.Run, repetitions: int, device: torch.device
) -> tuple[float, float]:
    """Median and quartile range of the time of one call, cache cold, launches in a CUDA graph."""
    for _ in range(3):  # compiles, and lets allocators settle
        run()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    flush = torch.empty(2**28, dtype=torch.uint8, device=device)
    begin, end = ([torch.cuda.Event(enable_timing=True) for _ in range(repetitions)] for _ in "ab")
    for i in range(repetitions):
        flush.zero_()
        begin[i].record()
        graph.replay()
        end[i].record()
    torch.cuda.synchronize(device)
    times = sorted(b.elapsed_time(e) / 1e3 for b, e in zip(begin, end, strict=True))
    quarter = len(times) // 4
    return statistics.median(times), times[-1 - quarter] - times[quarter]


def row_of(
    workload: Workload, seconds: float, spread: float, bandwidth: float, rate: float
) -> dict:
    """What is reported of one workload, given the ceilings of bytes and of operations."""
    share = workload.num_bytes / seconds / bandwidth
    judged = is_judged(workload.group, workload.num_bytes)
    floor = max(workload.num_bytes / bandwidth, workload.num_operations / rate)
    return {
        "name": workload.name,
        "group": workload.group,
        **workload.sizes,
        "bytes": workload.num_bytes,
        "us": seconds * 1e6,
        "spread_us": spread * 1e6,
        "floor_us": floor * 1e6,
        "GB_per_s": workload.num_bytes / seconds / 1e9,
        "TFLOP_per_s": workload.num_operations / seconds / 1e12,
        "share_of_copy": share,
        "target": workload.target if judged else None,
    }


def table(rows: list[dict]) -> str:
    """Rows as Markdown."""
    lines = [
        "| workload | MB | us | +- | floor us | GB/s | of copy | TFLOP/s | target | against SDPA |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        rate = f"{row['TFLOP_per_s']:.0f}" if row["TFLOP_per_s"] else ""
        speedup = f"{row['speedup']:.2f}x" if "speedup" in row else ""
        lines.append(
            f"| {row['name']} | {row['bytes'] / 1e6:.1f} | {row['us']:.1f} | "
            f"{row['spread_us']:.1f} | {row['floor_us']:.1f} | {row['GB_per_s']:.0f} | "
            f"{row['share_of_copy']:.2f} | {rate} | {target} | {speedup} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict], path: Path, device_name: str) -> None:
    """Share of the copy bandwidth over bytes moved, one line of points per kind of workload."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        kinds.setdefault(row["name"].split(" B=")[0], []).append(row)
    for kind, members in kinds.items():
        members.sort(key=lambda row: row["bytes"])
        axes.plot(
            [row["bytes"] / 1e6 for row in members],
            [row["share_of_copy"] for row in members],
            marker=".",
            label=kind,
        )
    axes.set(xscale="log", xlabel="MB moved", ylabel="share of copy bandwidth", title=device_name)
    axes.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few sizes, about a minute")
    parser.add_argument("--only", default="", help="groups whose name contains this")
    parser.add_argument("--repetitions", type=int, default=50, help="timed launches per row")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="directory")
    arguments = parser.parse_args(argv)
    if arguments.repetitions < 4:
        parser.error("--repetitions must be at least 4, for a median and its spread")
    if not torch.cuda.is_available():
        print(
            "bench_kernels measures GPU kernels and needs a CUDA device; torch finds none here. "
            "What can be checked without one: python -m pytest tests/kernels (numerics, in the "
            "interpreter of Triton) and python -m scripts.compile_kernels (registers).",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    import triton

    where = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }
    gate = kernel_gate.errors(device)
    if wrong := kernel_gate.faults(gate):
        print("\n".join(f"wrong: {fault}" for fault in wrong))
        print(json.dumps({**where, "num_rows": 0, "num_wrong": len(wrong)}))
        return 1
    print(f"{len(gate)} kinds of operations agree with their references")
    bandwidth = copy_bandwidth(device, arguments.repetitions)
    rate = product_rate(device, arguments.repetitions)
    print(
        f"{where['device']}: copies at {bandwidth / 1e9:.0f} GB/s, products at "
        f"{rate / 1e12:.0f} TFLOP/s"
    )
    rows = []
    for group in sweep(arguments.quick, device):
        if group and arguments.only in group[0].group:
            for workload in group:
                seconds, spread = median_seconds(workload.run, arguments.repetitions, device)
                rows.append(row_of(workload, seconds, spread, bandwidth, rate))
                print(f"{rows[-1]['name']}: {rows[-1]['us']:.1f} us", file=sys.stderr)
        group.clear()
        torch.cuda.empty_cache()
    if not rows:
        parser.error(
            f"no group contains {arguments.only!r}; there are attention, prefill, ssd and gdn"
        )
    missed = judge(rows)
    print(table(rows))
    for fault in missed:
        print(f"missed: {fault}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    ceilings = {"copy_GB_per_s": bandwidth / 1e9, "product_TFLOP_per_s": rate / 1e12}
    result = {**where, **ceilings, "relative_errors": gate, "rows": rows, "missed": missed}
    name = "bench_kernels_quick" if arguments.quick else "bench_kernels"
    (arguments.output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, arguments.output / f"{name}.png", where["device"])
    summary = {**where, **ceilings, "num_rows": len(rows)}
    print(json.dumps({**summary, "num_missed": len(missed)}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
