"""One optimizer for both kinds of parameters."""

from __future__ import annotations

import copy

import geoopt
import pytest
import torch
from torch import nn

from cacheshrink_hybrid.training.eigenbasis import eigenbasis_direction
from cacheshrink_hybrid.training.optimizer import (
    EUCLIDEAN_STEP,
    REFERENCE_WIDTH,
    RIEMANNIAN_STEP,
    NamedParameter,
    RiemannianAdamW,
    make_optimizer,
    state_elements,
    turns_gradients,
)


def stiefel(n: int, r: int) -> geoopt.ManifoldParameter:
    q = torch.linalg.qr(torch.randn(n, r))[0].contiguous()
    return geoopt.ManifoldParameter(q, manifold=geoopt.Stiefel(canonical=False))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_euclidean_parameters_follow_adamw(decay: float) -> None:
    start, target = torch.randn(5, 4), torch.randn(5, 4)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        RiemannianAdamW([{"params": [ours], "lr": 0.05, "weight_decay": decay}]),
        torch.optim.AdamW([theirs], lr=0.05, weight_decay=decay),
    ]
    for _ in range(20):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (parameter - target).pow(4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert optimizers[0].param_groups[0]["weight_decay"] == decay


def parameters() -> list[NamedParameter]:
    return [
        NamedParameter("basis", stiefel(16, 4), 1.0),
        NamedParameter("weight", nn.Parameter(0.2 * torch.randn(8, 8)), 0.2),
        NamedParameter("bias", nn.Parameter(torch.zeros(8)), 3.0),
    ]


AUTOMATIC = dict(
    width=REFERENCE_WIDTH,
    euclidean_lr=None,
    riemannian_lr=None,
    learning_rate_scale=1.0,
    weight_decay=0.1,
)


@pytest.mark.parametrize("wider", [1, 4])
def test_automatic_steps_follow_sizes(wider: int) -> None:
    optimizer = make_optimizer(
        parameters(), **AUTOMATIC | {"learning_rate_scale": 2.0, "width": wider * REFERENCE_WIDTH}
    )
    groups = {group["name"]: group for group in optimizer.param_groups}
    factor = 2 / wider
    assert groups["basis"]["lr"] == pytest.approx(factor * RIEMANNIAN_STEP * 2)  # sqrt(4) columns
    assert groups["weight"]["lr"] == pytest.approx(factor * EUCLIDEAN_STEP * 0.2)
    assert groups["bias"]["lr"] == pytest.approx(factor * EUCLIDEAN_STEP * 3)
    assert [groups[n]["weight_decay"] for n in ("basis", "weight", "bias")] == [0, 0.1, 0]


def test_matrices_step_in_their_eigenbasis_and_nothing_else_does() -> None:
    items = parameters()
    optimizer = make_optimizer(items, **AUTOMATIC | {"weight_decay": 0.0})
    assert [turns_gradients(item.parameter) for item in items] == [False, True, False]
    weight, rate = items[1].parameter, optimizer.param_groups[1]["lr"]
    state: dict = {}
    for _ in range(3):
        before = weight.detach().clone()
        optimizer.zero_grad()
        sum(item.parameter.pow(3).sum() for item in items).backward()
        direction = eigenbasis_direction(state, 3 * before.square(), (0.9, 0.999))
        optimizer.step()
        torch.testing.assert_close(weight.detach(), before - rate * direction)
        assert weight.grad is not None


def test_state_is_as_large_as_foreseen() -> None:
    items = parameters()
    optimizer = make_optimizer(items, **AUTOMATIC)
    sum(item.parameter.pow(3).sum() for item in items).backward()
    optimizer.step()
    for item in items:
        tensors = [t for t in optimizer.state[item.parameter].values() if torch.is_tensor(t)]
        assert sum(t.numel() for t in tensors) == state_elements(item.parameter)


def test_given_rates_are_taken_as_they_are() -> None:
    rates = {"euclidean_lr": 1e-5, "riemannian_lr": 1e-4, "width": 4096}
    optimizer = make_optimizer(parameters(), **AUTOMATIC | rates)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-5, 1e-5]


def test_columns_turn_by_the_step() -> None:
    """The first step of a factor turns its columns by the step, in root mean square."""
    item = NamedParameter("basis", stiefel(64, 16), 1.0)
    optimizer = make_optimizer([item], **AUTOMATIC)
    before = item.parameter.detach().clone()
    (item.parameter * torch.randn(64, 16)).sum().backward()
    optimizer.step()
    turned = (item.parameter.detach() - before).square().sum(0).mean().sqrt()
    assert float(turned) == pytest.approx(RIEMANNIAN_STEP, rel=0.05)


def test_state_round_trip() -> None:
    """A reloaded optimizer goes on as the first one does, bit for bit."""
    torch.manual_seed(1)
    items = parameters()
    optimizer = make_optimizer(items, **AUTOMATIC)

    def step(items, optimizer) -> None:
        optimizer.zero_grad()
        sum(item.parameter.pow(3).sum() for item in items).backward()
        optimizer.step()

    step(items, optimizer)
    copies = []
    for item in items:
        data = item.parameter.detach().clone()
        parameter = (
            geoopt.ManifoldParameter(data, manifold=geoopt.Stiefel(canonical=False))
            if item.on_manifold
            else nn.Parameter(data)
        )
        copies.append(NamedParameter(item.name, parameter, item.size))
    other = make_optimizer(copies, **AUTOMATIC)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(items, optimizer)
    step(copies, other)
    for item, twin in zip(items, copies, strict=True):
        assert torch.equal(item.parameter, twin.parameter)
