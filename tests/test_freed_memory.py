"""Freed tensors that lie in the heap go back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from cacheshrink_hybrid.freed_memory import return_freed_memory


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return 4096 * pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to")
def test_freed_tensors_below_others_are_given_back() -> None:
    tensors = [torch.ones(2**12) for _ in range(4000)]
    before = resident()
    del tensors[:-1]
    return_freed_memory()
    assert before - resident() > 0.7 * 4000 * 2**14
    assert tensors[0].sum() == 2**12
