"""What a projection does to its input as a matrix and an offset, whatever computes it.

Attention over latents multiplies queries by the matrix of a projection instead of running it over
every token. A plain layer's matrix is its weight. Any other (an adapter around it, a weight that is
quantized, offloaded, pruned or parametrized, a hook) is asked for the images of unit vectors, so
that decoding computes with what the layer's forward computes with. Nothing is kept between calls.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import UnsupportedModelError
from .headwise_linear import HeadwiseLinear

PLAIN_CLASSES = (nn.Linear, nn.Conv1d, Conv1D, HeadwiseLinear)
PLAIN_WEIGHTS = (nn.Parameter, Tensor)

TRIAL_TOLERANCE = 0.02
"""Share of its terms by which a linear layer may miss a sum; 8-bit activations miss 0.4 %."""

_TRIED: WeakKeyDictionary[nn.Module, tuple[tuple, bool]] = WeakKeyDictionary()
"""Of layers that are not plain: how they were when they were tried, and whether they are linear."""


def looking_on(hook: Any) -> Any:
    """Mark a hook, which must take attributes, as one that changes neither inputs nor outputs, so
    that layers that it watches stay plain; returns it."""
    hook.only_looks_on = True
    return hook


def is_plain(module: nn.Module) -> bool:
    """Whether a layer computes what its class, weight and bias say, and nothing else."""
    if type(module) not in PLAIN_CLASSES or type(module.weight) not in PLAIN_WEIGHTS:
        return False
    if "forward" in vars(module):
        return False
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return not hooks or all(getattr(hook, "only_looks_on", False) for hook in hooks)


def images(module: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """M x of each of these inputs, (n, out), and b (out,), for a layer that computes M x + b.

    Args:
        inputs: (n, in), of the type and on the device that the layer is called with.
    """
    # Large inputs, so that what a 16-bit sum with b rounds off is small beside M x.
    size = 64.0 if inputs.dtype == torch.float16 else 4096.0
    rows = torch.cat([inputs * size, torch.zeros_like(inputs[:1])])
    outputs = module(rows[None])[0]
    return (outputs[:-1] - outputs[-1]) / size, outputs[-1]


def is_linear(module: nn.Module, inputs: Tensor) -> bool:
    """Whether a layer computes M x + b with the same M for all tokens and sequences.

    Plain layers do. Others are tried, once per class and set of hooks; a hook that is given
    keyword arguments may tell sequences apart and counts as no linear map. While a graph is
    traced, only plain layers count as linear.

    Args:
        inputs: unit vectors of all its channels, see `images`.
    """
    if is_plain(module):
        return True
    if torch.compiler.is_compiling() or module._forward_pre_hooks_with_kwargs:
        return False
    state = (type(module), *module._forward_hooks, *module._forward_pre_hooks)
    tried = _TRIED.get(module)
    if tried is None or tried[0] != state:
        tried = _TRIED[module] = (state, _adds_up(module, inputs))
    return tried[1]


@torch.no_grad()
def _adds_up(module: nn.Module, inputs: Tensor) -> bool:
    """Whether the image of a sum is the sum of the images, up to rounding."""
    single, _ = images(module, inputs)
    signs = torch.ones_like(inputs[:, 0])
    signs[1::2] = 0
    signs[3::4] = -1
    mixed, _ = images(module, (signs[:, None] * inputs).sum(0, keepdim=True))
    due = signs[None].double() @ single.double()
    error = (mixed.double() - due).abs().max()
    return bool(error <= TRIAL_TOLERANCE * single.double().abs().sum(0).max())


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out,) or None of a linear layer, plain or not.

    Args:
        module: nn.Linear, Conv1D (whose weight is stored transposed), or something that stands in
            the place of one and has its `in_features`.

    Raises:
        UnsupportedModelError: its outputs are no linear map of its inputs.
    """
    transposed = isinstance(module, Conv1D)
    if is_plain(module):
        return (module.weight.T if transposed else module.weight), module.bias
    weight = module.weight
    place = {"dtype": torch.get_default_dtype(), "device": None}
    if isinstance(weight, Tensor) and weight.is_floating_point():
        device = None if weight.is_meta else weight.device
        place = {"dtype": weight.dtype, "device": device}
    width = module.nx if transposed else module.in_features
    units = torch.eye(width, **place)
    if not is_linear(module, units):
        raise UnsupportedModelError(
            f"a {type(module).__name__} in the place of a linear layer computes something else "
            "than a linear map of its input, or has hooks that do; take the wrapper or hook off"
        )
    with torch.no_grad():
        columns, offset = images(module, units)
    return columns.T, offset
