"""Losses of next-token distributions against their formulas, with gradients by autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid import next_token
from cacheshrink_hybrid.next_token import (
    IGNORED,
    distillation_loss,
    language_model_loss,
    mean_next_token_loss,
    overwrite_with_gradient,
)
from cacheshrink_hybrid.training.data import EMPTY, collate
from tests.tolerances import FLOAT64

LENGTHS = (7, 4)
V = 11
FLOAT32 = 1e-6


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return collate([{"input_ids": torch.randint(0, V, (n,))} for n in LENGTHS] + [EMPTY])


def formula(logits: Tensor, taught: Tensor, ids: Tensor, temperature: float, alpha: float):
    """The loss token by token."""
    total = logits.new_zeros(())
    for row, length in enumerate(LENGTHS):
        for t in range(length - 1):
            p = torch.softmax(taught[row, t] / temperature, -1)
            q = torch.softmax(logits[row, t] / temperature, -1)
            total = total + alpha * temperature**2 * (p * (p / q).log()).sum()
            total = total - (1 - alpha) * torch.log_softmax(logits[row, t], -1)[ids[row, t + 1]]
    return total


@pytest.mark.parametrize("rows", [1, 5, 100], ids="rows {}".format)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, 1e-5)], ids=str
)
def test_distillation_is_its_formula(
    batch, monkeypatch, temperature, alpha, rows, dtype, tolerance
) -> None:
    monkeypatch.setattr(next_token, "BLOCK_ELEMENTS", rows * V)
    logits, taught = 3 * torch.randn(2, 3, 7, V, dtype=dtype)
    logits.requires_grad_()
    loss = distillation_loss(logits, taught, batch["labels"], temperature, alpha)
    (gradient,) = torch.autograd.grad(loss / 9, logits)
    exact = logits.detach().double().requires_grad_()
    due = formula(exact, taught.double(), batch["input_ids"], temperature, alpha)
    (due_gradient,) = torch.autograd.grad(due / 9, exact)
    assert loss.dtype == gradient.dtype == dtype
    assert loss.item() == pytest.approx(due.item(), rel=tolerance)
    assert float((gradient - due_gradient).abs().max()) < tolerance


def test_language_model_loss_is_the_cross_entropy(batch) -> None:
    logits = (3 * torch.randn(3, 7, V, dtype=torch.float64)).requires_grad_()
    loss = language_model_loss(logits, batch["labels"])
    due = formula(logits, logits.detach(), batch["input_ids"], 1.0, 0.0)
    assert loss.item() == pytest.approx(due.item(), rel=FLOAT64)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (loss, due)]
    torch.testing.assert_close(*gradients)


def test_a_student_like_its_teacher_has_nothing_to_learn(batch) -> None:
    logits = (50 + 3 * torch.randn(3, 7, V)).requires_grad_()
    loss = distillation_loss(logits, logits.detach().clone(), batch["labels"], 2.0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_what_is_not_predicted_does_not_count(batch) -> None:
    logits, taught = torch.randn(2, 3, 7, V)
    due = distillation_loss(logits, taught, batch["labels"], 1.0, 0.5)
    for spoiled in (logits, taught):
        # After the last predicted token of the short text, and all of the empty one.
        spoiled[1, 3:], spoiled[2], spoiled[:, -1] = torch.nan, torch.inf, torch.nan
    logits.requires_grad_()
    loss = distillation_loss(logits, taught, batch["labels"], 1.0, 0.5)
    torch.testing.assert_close(loss.detach(), due)
    loss.backward()
    assert logits.grad is not None and not logits.grad[1, 3:].any() and not logits.grad[2].any()
    assert not logits.grad[:, -1].any() and logits.grad[0, :-1].all()


def test_bfloat16_is_computed_in_float32(batch) -> None:
    logits, taught = (3 * torch.randn(2, 3, 7, V)).bfloat16()
    logits.requires_grad_()
    loss = distillation_loss(logits, taught, batch["labels"], 2.0, 0.5)
    due = distillation_loss(logits.float(), taught.float(), batch["labels"], 2.0, 0.5)
    assert loss.dtype == torch.float32 and torch.equal(loss, due)
    loss.backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


def test_a_gradient_is_taken_once(batch) -> None:
    logits = torch.randn(3, 7, V, requires_grad=True)
    loss = language_model_loss(logits, batch["labels"])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        loss.backward()


def test_large_logits_neither_overflow_nor_cancel(batch) -> None:
    logits = torch.full((3, 7, V), 1e4)
    logits[..., 0] += 1
    due = 9 * math.log(math.e + V - 1)
    chosen = float((batch["labels"][:, 1:] == 0).sum())
    loss = language_model_loss(logits, batch["labels"])
    assert loss.item() == pytest.approx(due - chosen, rel=FLOAT32)


@pytest.mark.parametrize("rows", [1, 5, 100], ids="rows {}".format)
def test_a_gradient_takes_the_place_of_its_logits(monkeypatch, rows: int) -> None:
    monkeypatch.setattr(next_token, "BLOCK_ELEMENTS", rows * V)
    logits = (3 * torch.randn(7, V)).requires_grad_()
    targets = torch.randint(0, V, (7,))
    targets[2] = IGNORED
    due = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    due.backward()
    found = logits.detach().clone()
    assert overwrite_with_gradient(found, targets) == pytest.approx(due.item(), rel=1e-6)
    torch.testing.assert_close(found, logits.grad)


def test_mean_loss_of_a_text() -> None:
    logits, ids = 3 * torch.randn(1, 7, V), torch.randint(0, V, (1, 7))
    due = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert mean_next_token_loss(logits, ids) == pytest.approx(due.item(), rel=1e-6)
