"""Tensors that outlive the call that makes them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def lasting() -> AbstractContextManager:
    """Within this context tensors are made that any later call may write to and differentiate
    through, also if the caller is in `torch.inference_mode()`, whose own tensors allow neither
    outside of it. Gradients are on in it where that mode is left."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
