"""Decoding as with kernels, but with their references: what caches and modules hand to kernels is
tested without the interpreter, which takes a hundred times longer."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.kernels import backend as backends
from cacheshrink_hybrid.pool import memory


def run_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `backend="triton"` go everywhere it would go, and there run references."""
    monkeypatch.setattr(memory, "runs_triton", lambda backend, device: backend == "triton")
    monkeypatch.setattr(backends, "runs_triton", lambda backend, device: False)
