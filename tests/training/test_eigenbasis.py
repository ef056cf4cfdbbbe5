"""Adam in the eigenbasis of a matrix's gradients."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.training import eigenbasis
from cacheshrink_hybrid.training.eigenbasis import eigenbasis_direction, has_eigenbasis

BETAS = (0.9, 0.999)


def gradients(n: int, m: int, count: int = 25) -> list[torch.Tensor]:
    """Of correlated rows and columns, float64."""
    torch.manual_seed(0)
    left, right = torch.randn(n, n).double(), torch.randn(m, m).double()
    return [left @ torch.randn(n, m).double() @ right for _ in range(count)]


def test_without_bases_it_is_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigenbasis, "LONGEST_SIDE", 0)
    monkeypatch.setattr(eigenbasis, "FLOOR", 0.0)
    parameter = torch.nn.Parameter(torch.zeros(5, 7).double())
    adam = torch.optim.Adam([parameter], lr=1.0, betas=BETAS)
    expected, state = torch.zeros(5, 7).double(), {}
    for gradient in gradients(5, 7):
        parameter.grad = gradient.clone()
        adam.step()
        expected -= eigenbasis_direction(state, gradient, BETAS)
        torch.testing.assert_close(expected, parameter.detach(), rtol=1e-5, atol=1e-5)
    assert "left" not in state


@pytest.mark.parametrize("longest", [5, 7], ids=["one side", "both sides"])
def test_no_basis_is_preferred(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turned gradients give the turned direction, which those of Adam do not."""
    monkeypatch.setattr(eigenbasis, "LONGEST_SIDE", longest)
    left = torch.linalg.qr(torch.randn(5, 5).double())[0]
    right = torch.linalg.qr(torch.randn(7, 7).double())[0]
    if longest < 7:
        right = torch.eye(7).double()
    plain, turned = {}, {}
    for gradient in gradients(5, 7):
        one = eigenbasis_direction(plain, gradient, BETAS)
        other = eigenbasis_direction(turned, left @ gradient @ right.mT, BETAS)
    torch.testing.assert_close(left @ one @ right.mT, other, rtol=1e-6, atol=1e-6)


def test_rounding_is_no_direction() -> None:
    """Where gradients are zero but for rounding, nothing moves."""
    torch.manual_seed(0)
    state: dict = {}
    inside = torch.linalg.qr(torch.randn(24, 3))[0]
    for _ in range(12):
        gradient = inside @ torch.randn(3, 20)
        gradient = gradient + 1e-8 * torch.randn(24, 20)
        direction = eigenbasis_direction(state, gradient, BETAS)
    outside = direction - inside @ (inside.mT @ direction)
    assert float(outside.norm() / direction.norm()) < 1e-2


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 8), True), ((8,), False), ((1, 8), False), ((2, 4, 8), False), ((1024, 4096), True)],
    ids=str,
)
def test_who_has_one(shape: tuple[int, ...], expected: bool) -> None:
    assert has_eigenbasis(torch.Size(shape)) == expected
    assert not has_eigenbasis(torch.Size((2048, 4096)))
