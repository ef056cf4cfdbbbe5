"""Decoding by others than those that would be chosen here.

By references, as with kernels: what caches and modules hand to kernels is tested without the
interpreter, which takes a hundred times longer. By torch: where results are compared to the bit.
"""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.engine import coverage, runner
from cacheshrink_hybrid.kernels import backend as backends
from cacheshrink_hybrid.latents.attention import attend, cached_layer
from cacheshrink_hybrid.pool import memory


def run_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `backend="triton"` go everywhere it would go, and there run references."""
    for module in (memory, attend, cached_layer, coverage, runner):
        monkeypatch.setattr(module, "implementation_on", _as_on_a_gpu)
    monkeypatch.setattr(backends, "implementation_on", lambda backend, device: "torch")


def run_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `backend="auto"` find no functions that are compiled for CPUs."""
    monkeypatch.setattr(backends, "_installed", lambda package: package != "numba")


def _as_on_a_gpu(backend: backends.Backend, device: torch.device) -> backends.Implementation:
    return "triton" if backend == "triton" else "torch"
