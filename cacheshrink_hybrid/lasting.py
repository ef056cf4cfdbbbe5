"""Tensors that outlive the call that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def lasting_tensors() -> Iterator[None]:
    """Within this context tensors are made that any later call may write to and differentiate
    through, also if the caller is in `torch.inference_mode()`, whose own tensors allow neither
    outside of it. Gradients are on in it where that mode is left. What a graph makes that is being
    traced is the graph's own, and stays as it is."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False):
        yield
