"""What only a GPU shows: long drift, graphs, memory taken per step, speed. The numerics of every
kernel are tested beside it, on a GPU too where there is one.
"""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs.state_format import StateFormat, StateSegment
from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.kernels.latents.decode import LatentRead, latent_decode
from cacheshrink_hybrid.kernels.states.pages import StatePages, StatePlace
from cacheshrink_hybrid.kernels.states.ssd_step import ssd_step

from .cases import LAYOUTS
from .checks import assert_close
from .pools import filled_rows

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
M, P, N, G = 8, 64, 64, 2

# Relative error of the output after many steps: memory lengths of 20 to 5000 steps, all heads.
DRIFT = {"float32": 1e-4, "float16": 1e-2, "int8": 0.2}


def _drift(code: str, num_steps: int, device: torch.device, backend: Backend) -> float:
    """Error of coded states against the exact recurrence, over the last tenth of the steps."""
    pages = StatePages(
        arena=torch.zeros(2**20, dtype=torch.uint8, device=device),
        frame_bytes=16384,
        place=StatePlace.packed(16384),
        format=StateFormat(P, (StateSegment(heads=tuple(range(M)), rank=N, code=code),)),
    )
    table = torch.randperm(pages.num_frames, device=device).int()[None]
    state = torch.zeros(M, P, N, device=device)
    A = -1.0 / torch.logspace(1.3, 3.7, M, device=device)
    error = size = 0.0
    for t in range(num_steps):
        x = torch.randn(1, M, P, device=device)
        write, read = torch.randn(2, 1, G, N, device=device)
        dt = torch.rand(1, M, device=device)
        y = ssd_step(
            x,
            dt,
            A,
            write,
            read,
            pages=pages,
            read_table=table,
            write_table=table,
            backend=backend,
        )
        writes, reads = (v[0].repeat_interleave(M // G, dim=0) for v in (write, read))
        state.mul_(torch.exp(dt[0] * A)[:, None, None])
        state.add_((dt[0, :, None] * x[0])[..., None] * writes[:, None])
        if t >= num_steps - max(1, num_steps // 10):
            due = torch.einsum("mpn,mn->mp", state, reads)
            error += float((y[0] - due).square().sum())
            size += float(due.square().sum())
    return (error / size) ** 0.5


@pytest.mark.parametrize("code", DRIFT)
@pytest.mark.parametrize(
    ("num_steps", "backend"), [(30, "torch"), pytest.param(10_000, "triton", marks=on_gpu)]
)
def test_drift(code: str, num_steps: int, backend: Backend) -> None:
    device = torch.device("cpu" if backend == "torch" else "cuda")
    assert _drift(code, num_steps, device, backend) < DRIFT[code]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGpu:
    def test_a_step_takes_no_memory_for_expanded_rows(self) -> None:
        """Decoding 64 x 2048 slots allocates its results and partial results, nothing that grows
        with the context."""
        lens = [2048] * 64
        rows, table, context = filled_rows(
            LAYOUTS["mixed"], lens, device=torch.device("cuda"), frame_tokens=64
        )
        query = torch.randn(64, 1, 32, 64, device="cuda", dtype=torch.bfloat16)
        read = LatentRead(key_rank=64, value_rank=64, scale=0.1)
        latent_decode(query, rows, table, context, read=read)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output, lse = latent_decode(query, rows, table, context, read=read, num_splits=8)
        taken = torch.cuda.max_memory_allocated() - before
        partial = 64 * 32 * 8 * (64 + 1) * 4
        assert taken <= output.nbytes + lse.nbytes + partial + 8192

    def test_graph_follows_lengths_and_tables(self) -> None:
        device = torch.device("cuda")
        rows, table, context = filled_rows(
            LAYOUTS["8"], [500, 77, 300], device=device, frame_tokens=16
        )
        query = torch.randn(3, 1, 8, 48, device=device)
        read = LatentRead(key_rank=48, value_rank=48, scale=0.1)
        live_table, live_context = table.clone(), context.clone()
        latent_decode(query, rows, live_table, live_context, read=read)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, _ = latent_decode(query, rows, live_table, live_context, read=read)
        for length in (1, 0, 60):
            live_context[1] = length
            live_table[2] = table[2].roll(1)
            graph.replay()
            due, _ = latent_decode(
                query, rows, live_table, live_context, read=read, backend="torch"
            )
            assert_close(output, due)

    @pytest.mark.slow
    def test_speed_targets(self, tmp_path) -> None:
        from scripts import bench_kernels

        assert bench_kernels.main(["--quick", "--output", str(tmp_path)]) == 0
