"""The benchmark runs its workloads, counts their bytes rightly, and says what it needs."""

from __future__ import annotations

import json

import pytest
import torch

from scripts import bench_kernels
from scripts import kernel_workloads as workloads

CPU = torch.device("cpu")
STATE = {"batch": 2, "heads": 4, "head_dim": 16, "rank": 16, "groups": 2, "device": CPU}


def _workloads() -> list[workloads.Workload]:
    full = {"batch": 2, "context": 70, "heads": 4, "device": CPU}
    shape = {"key_heads": 2, "head_dim": 16}
    made = [
        workloads.full_attention(**full, **shape),
        workloads.rebuilt_attention(**full, **shape, rank=16, value_rank=32, backend="torch"),
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
    rows = 2 * 70 * 48  # 32 bytes of codes and a head byte, padded to 16
    assert coded.num_bytes == rows + 2 * 2 * 4 + 2 * (2 * 4 * 64) * 2
    state = by_name["ssd_step int8 B=2 4x16x16"]
    codes_and_scales = 4 * 16 * 16 + 4 * 16
    inputs = 2 * (2 * 4 * 16) * 2 + 2 * (2 * 2 * 16) * 2 + 2 * 4 * 4
    assert state.num_bytes == 2 * 2 * codes_and_scales + inputs + 2 * 2 * 4


def test_judging() -> None:
    """Shares are judged from enough bytes on; attention also against full K/V and 16 bits."""
    made = _workloads()
    rows = [bench_kernels.row_of(w, 1e-3, 1e-5, 1e12) for w in made if "attention" in w.group]
    assert all(row["target"] is None for row in rows)
    for row in rows:
        row.update(context=32768, batch=8)
    for row, time in zip(rows, (900.0, 500.0, *[290.0] * 20), strict=False):
        row["us"] = time
    full = rows[0]
    full["bytes"] = 4e9
    paged = next(row for row in rows if row["name"].startswith("latent_decode paged 8"))
    paged.update(bytes=1e9, target=0.6, share_of_copy=0.5, us=310.0)
    missed = bench_kernels.judge(rows)
    assert sorted(missed) == [
        "latent_decode paged 8 B=2 L=70 R=64 H=4: 0.50 of the copy bandwidth, 0.6 is due",
        "latent_decode paged 8 B=2 L=70 R=64 H=4: 2.90x SDPA, 3.0x is due",
        "latent_decode paged 8 B=2 L=70 R=64 H=4: slower than the same rank in 16 bits",
        "latent_decode rebuilt 8 B=2 L=70 r=16x2 V=32: 1.80x SDPA, 2.0x is due",
    ]
    assert "| 0.50 | 0.60 | 2.90x |" in bench_kernels.table(rows)
    json.dumps(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_kernels.main(["--quick"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
