"""A projection's matrix is what its forward computes with, whatever that is."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers.pytorch_utils import Conv1D

from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.headwise_linear import HeadwiseLinear
from cacheshrink_hybrid.linear_map import images, is_linear, is_plain, looking_on, weight_and_bias


class Scaled(nn.Linear):
    def forward(self, x):
        return 1.5 * super().forward(x)


def hooked(hook) -> nn.Linear:
    layer = nn.Linear(6, 5)
    layer.register_forward_hook(lambda _module, _args, output: hook(output))
    return layer


LINEAR = {
    "plain": lambda: nn.Linear(6, 5),
    "without bias": lambda: nn.Linear(6, 5, bias=False),
    "transposed": lambda: Conv1D(5, 6),
    "subclass": lambda: Scaled(6, 5),
    "parametrized": lambda: parametrizations.weight_norm(nn.Linear(6, 5)),
    "pruned": lambda: prune.random_unstructured(nn.Linear(6, 5), "weight", 0.4),
    "hook": lambda: hooked(lambda output: 2 * output + 1),
}


@pytest.mark.parametrize("name", LINEAR)
def test_weight_and_bias(name: str) -> None:
    layer, x = LINEAR[name](), torch.randn(3, 4, 6)
    weight, bias = weight_and_bias(layer)
    torch.testing.assert_close(nn.functional.linear(x, weight, bias), layer(x))


def test_plain_layers_are_read_as_they_are() -> None:
    layer = nn.Linear(6, 5)
    assert weight_and_bias(layer)[0] is layer.weight
    assert is_plain(Conv1D(5, 6)) and is_plain(HeadwiseLinear(2, 3, (1,)))
    assert not any(is_plain(LINEAR[name]()) for name in ("subclass", "parametrized", "hook"))
    layer.forward = layer.forward  # as accelerate does
    assert not is_plain(layer)


def test_layers_that_are_watched_stay_plain() -> None:
    layer, seen = nn.Linear(6, 5), []
    layer.register_forward_hook(looking_on(lambda *given: seen.append(given)))
    layer.register_forward_pre_hook(looking_on(partial(lambda *given: None)))
    assert is_plain(layer)
    assert weight_and_bias(layer)[0] is layer.weight and not seen
    layer.register_forward_hook(lambda _module, _args, output: output)
    assert not is_plain(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_large_bias_rounds_nothing_off(dtype: torch.dtype) -> None:
    layer = nn.Linear(6, 5).to(dtype)
    nn.init.constant_(layer.bias, 10.0)
    columns, offset = images(layer, torch.eye(6, dtype=dtype))
    torch.testing.assert_close(columns.T, layer.weight, rtol=2e-2, atol=1e-3)
    assert torch.equal(offset, layer.bias)


@pytest.mark.parametrize(
    "hook",
    [torch.relu, lambda output: output.clamp(-1, 1), lambda output: output * output.norm()],
    ids=["relu", "clamp", "norm"],
)
def test_what_is_no_linear_map(hook) -> None:
    layer = hooked(hook)
    assert not is_linear(layer, torch.eye(6))
    with pytest.raises(UnsupportedModelError, match="a Linear in the place of a linear layer"):
        weight_and_bias(layer)


def test_a_hook_that_comes_later_is_tried_anew() -> None:
    layer = hooked(lambda output: 2 * output)
    assert is_linear(layer, torch.eye(6))
    layer.register_forward_hook(lambda _module, _args, output: output.relu())
    assert not is_linear(layer, torch.eye(6))


def test_hooks_that_may_tell_sequences_apart() -> None:
    layer = nn.Linear(6, 5)
    layer.register_forward_pre_hook(lambda _module, args, kwargs: (args, kwargs), with_kwargs=True)
    assert not is_linear(layer, torch.eye(6))
