"""What runs, by backend, device and what is installed."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.errors import ConfigError, KernelUnavailableError
from cacheshrink_hybrid.kernels import backend as backends
from cacheshrink_hybrid.kernels.backend import implementation, implementation_on, uses_triton

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _only(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setattr(backends, "_installed", lambda package: package in packages)


@pytest.mark.parametrize(
    ("packages", "device", "due"),
    [
        (("numba", "triton"), CPU, "cpu"),
        (("numba", "triton"), CUDA, "triton"),
        (("triton",), CPU, "torch"),
        (("numba",), CUDA, "torch"),
        (("numba", "triton"), torch.device("meta"), "torch"),
    ],
)
def test_auto(
    packages: tuple[str, ...], device: torch.device, due: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, *packages)
    assert implementation_on("auto", device) == due
    assert implementation_on("torch", device) == "torch"


def test_what_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, "numba", "triton")
    monkeypatch.setattr(backends, "_interpreting", lambda: False)
    with pytest.raises(KernelUnavailableError, match="got tensors on cuda"):
        implementation_on("cpu", CUDA)
    with pytest.raises(KernelUnavailableError, match="got CPU tensors"):
        implementation_on("triton", CPU)
    _only(monkeypatch)
    with pytest.raises(KernelUnavailableError, match=r"numba .*cacheshrink_hybrid\[cpu\]"):
        implementation_on("cpu", CPU)
    with pytest.raises(KernelUnavailableError, match="needs the triton package"):
        implementation_on("triton", CUDA)
    with pytest.raises(ConfigError, match="backend='cuda' is unknown; choose one of auto, triton"):
        implementation_on("cuda", CPU)  # type: ignore[arg-type]


def test_operations_that_have_no_function_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, "numba")
    assert not uses_triton("auto", torch.zeros(1))
    with pytest.raises(KernelUnavailableError, match="rows of latents only"):
        uses_triton("cpu", torch.zeros(1))


def test_tensors_lie_on_one_device() -> None:
    with pytest.raises(ConfigError, match="move them to one device"):
        implementation("auto", torch.zeros(1), torch.zeros(1, device="meta"))
