"""What kernels are told of a head, and what they are not for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cacheshrink_hybrid.errors import KernelUnavailableError
from cacheshrink_hybrid.latents.attention.kernel_view import latent_read, why_not
from cacheshrink_hybrid.latents.attention.slot_rotary import SlotRotary
from tests.latents.attention.heads import head_of


def test_norms_over_all_heads_are_refused() -> None:
    with pytest.raises(KernelUnavailableError, match="mean square of a head's channels"):
        latent_read(head_of("olmo2", "joint"), 1, torch.empty(0))


def test_layers_that_keep_nothing_of_their_values_are_refused() -> None:
    """As small budgets make them; `auto` then leaves them to torch."""
    head = head_of("llama", "joint")
    assert why_not(head, torch.empty(0)) is None
    reason = why_not(replace(head, plan=replace(head.plan, value_rank=0)), torch.empty(0))
    assert reason is not None and "value_rank=0" in reason


def test_models_that_compute_in_float64_are_left_to_torch() -> None:
    head = head_of("llama", "joint")
    reason = why_not(head, torch.empty(0, dtype=torch.float64))
    assert reason is not None and "computes in torch.float64" in reason


@pytest.mark.parametrize("method", ["joint", "rotate"])
def test_other_rotations_than_of_pairs_are_left_to_torch(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rebuilt keys, and of queries that are turned back to a block."""
    head = head_of("llama", method, exact_window=2)
    assert why_not(head, torch.empty(0)) is None
    monkeypatch.setattr(SlotRotary, "rotated_halves", lambda self, head_dim: None)
    reason = why_not(replace(head), torch.empty(0))
    assert reason is not None and "this model rotates otherwise" in reason
