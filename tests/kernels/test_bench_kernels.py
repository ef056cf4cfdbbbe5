"""The benchmark runs its workloads, counts their bytes rightly, and says what it needs."""

from __future__ import annotations

import json

import pytest
import torch

from scripts import bench_kernels, kernel_gate, kernel_targets
from scripts import kernel_workloads as workloads
from scripts.prefill_workloads import Chunk, chunk_over_full, chunk_over_latents

CPU = torch.device("cpu")
CHUNK = Chunk(batch=2, history=70, num_new=9, heads=4, key_heads=2, head_dim=16, device=CPU)
STATE = {"batch": 2, "heads": 4, "head_dim": 16, "rank": 16, "groups": 2, "device": CPU}


def _workloads() -> list[workloads.Workload]:
    full = {"batch": 2, "context": 70, "heads": 4, "device": CPU}
    shape = {"key_heads": 2, "head_dim": 16}
    made = [
        workloads.full_attention(**full, **shape),
        *(
            workloads.per_head_attention(
                **full,
                **shape,
                stored_rotated=stored_rotated,
                rank=16,
                value_rank=32,
                backend="torch",
            )
            for stored_rotated in (False, True)
        ),
        *(
            workloads.joint_attention(
                **full, **shape, mode=mode, runs=[(32, 6), (48, 3)], backend="torch"
            )
            for mode in ("absorb", "reconstruct", "rotate")
        ),
        workloads.torch_ssd(**STATE),
        workloads.ssd(**STATE, code="int8", backend="torch"),
        workloads.gdn(**STATE, code="float16", backend="torch"),
    ]
    for codec in workloads.CODECS:
        for dense in (False, True):
            made.append(
                workloads.latent_attention(
                    **full, codec=codec, rank=64, dense=dense, backend="torch", target=0.5
                )
            )
    made.append(chunk_over_full(CHUNK))
    made += chunk_over_latents(CHUNK, rank=32, bits=8, rotated=True, backend="torch")
    made += chunk_over_latents(CHUNK, rank=32, bits=4, rotated=False, backend="torch")
    return made


def test_workloads_run() -> None:
    for workload in _workloads():
        result = workload.run()
        result = result[0] if isinstance(result, tuple) else result
        assert result.isfinite().all(), workload.name
        assert result.abs().max() > 0, workload.name


def test_bytes() -> None:
    by_name = {workload.name: workload for workload in _workloads()}
    full = by_name["SDPA full K/V B=2 L=70 2x16"]
    assert full.num_bytes == 2 * 2 * (2 * 70 * 16) * 2 + 2 * (2 * 4 * 16) * 2
    coded = by_name["latent_decode paged 4 B=2 L=70 R=64 H=4"]
    rows = 2 * 70 * 48  # 32 bytes of codes and a gain, padded to 16
    assert coded.num_bytes == rows + 2 * 2 * 4 + 2 * (2 * 4 * 64) * 2
    joint = by_name["latent_decode rotate mixed B=2 L=70 R=80 H=4"]
    rows = 2 * 70 * 48  # 24 and 18 bytes of codes and a gain, padded to 16
    weights, results = 2 * 16 * 80 * 2, 2 * 4 * 80 * 2
    assert joint.num_bytes == rows + 2 * 2 * 4 + 2 * 4 * 16 * 2 + results + weights
    products = 4 * (16 * 80 // 64 + 16 + 80 + 80)
    assert joint.num_operations == 2 * 70 * 2 * products
    state = by_name["ssd_step int8 B=2 4x16x16"]
    codes_and_scales = 4 * 16 * 16 + 4 * 16
    inputs = 2 * (2 * 4 * 16) * 2 + 2 * (2 * 2 * 16) * 2 + 2 * 4 * 4
    assert state.num_bytes == 2 * 2 * codes_and_scales + inputs + 2 * 2 * 4


def test_bytes_and_operations_of_a_chunk() -> None:
    by_name = {workload.name: workload for workload in _workloads()}
    queries = 2 * 4 * 9 * 16
    pairs = 2 * (70 * 9 + 9 * 10 / 2)  # of a query and a slot that it sees
    full = by_name["prefill SDPA full K/V 2x16 B=2 L=70 T=9"]
    assert full.num_bytes == 2 * 2 * (2 * 79 * 16) * 2 + 2 * queries * 2
    assert full.num_operations == pairs * 4 * (2 * 2 * 16)
    met = by_name["prefill paged absorbed 4 R=32 B=2 L=70 T=9"]
    assert met.num_bytes == 2 * 79 * 32 + 2 * 2 * 4 + 2 * queries * 2  # 17 bytes, padded to 32
    assert met.num_operations == pairs * 4 * 2 * (32 + 32)
    expanded = by_name["prefill expanded absorbed 4 R=32 B=2 L=70 T=9"]
    assert expanded.num_bytes == met.num_bytes + 2 * 2 * 2 * (2 * 79 * 16) * 2
    # Each slot is expanded once, whatever number of queries sees it.
    assert expanded.num_operations == full.num_operations + pairs / 9 * 2 * 2 * 16 * (32 + 32)
    assert {met.sizes["chosen"], expanded.sizes["chosen"]} == {True, False}


@pytest.mark.slow
def test_small_workloads_agree_with_references() -> None:
    pytest.importorskip("triton")
    gpu = torch.cuda.is_available()
    errors = kernel_gate.errors(torch.device("cuda" if gpu else "cpu"), "triton")
    assert {name.split()[0] for name in errors} == {
        "latent_decode",
        "ssd_step",
        "gdn_step",
        "prefill",
    }
    assert kernel_gate.faults(errors) == []
    name = next(iter(errors))
    assert kernel_gate.faults({name: float("nan")})[0].startswith(f"{name}: off by nan")


def test_judging() -> None:
    """Shares are judged from enough bytes on; attention also against full K/V and 16 bits."""
    made = _workloads()
    rows = [bench_kernels.row_of(w, 1e-3, 1e-5, 1e12, 1e15) for w in made if "attention" in w.group]
    assert all(row["target"] is None for row in rows)
    for row in rows:
        row.update(context=32768, batch=8)
    for row, time in zip(rows, (900.0, 500.0, *[290.0] * 20), strict=False):
        row["us"] = time
    full = rows[0]
    full["bytes"] = 4e9
    paged = next(row for row in rows if row["name"].startswith("latent_decode paged 8"))
    paged.update(bytes=1e9, target=0.6, share_of_copy=0.5, us=310.0)
    missed = kernel_targets.judge(rows)
    assert sorted(missed) == [
        "latent_decode paged 8 B=2 L=70 R=64 H=4: 0.50 of the copy bandwidth, 0.6 is due",
        "latent_decode paged 8 B=2 L=70 R=64 H=4: 2.90x SDPA, 3.0x is due",
        "latent_decode paged 8 B=2 L=70 R=64 H=4: slower than the same rank in 16 bits",
        "latent_decode rebuilt 8 B=2 L=70 r=16x2 V=32: 1.80x SDPA, 2.0x is due",
    ]
    assert "| 0.50 |  | 0.60 | 2.90x |" in bench_kernels.table(rows)
    json.dumps(rows)


def test_judging_the_ways_of_a_chunk() -> None:
    made = [w for w in _workloads() if w.group.startswith("prefill")]
    rows = [bench_kernels.row_of(w, 1e-3, 1e-5, 1e12, 1e9) for w in made]
    assert rows[0]["floor_us"] == pytest.approx(made[0].num_operations / 1e9 * 1e6)
    assert kernel_targets.judge(rows) == []
    slow = next(row for row in rows if row.get("chosen"))
    slow["us"] = 2000.0
    assert kernel_targets.judge(rows) == [
        f"{slow['name']}: chosen, and takes 2.00 times as long as the other way"
    ]
    assert slow["speedup"] == 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_kernels.main(["--quick"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
