"""The model's own linear layers in decoding steps of a few sequences on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import linear

from ..kernels.few_rows import FEWEST_ROWS, MOST_ROWS, few_rows_linear, takes_rows
from ..linear_map import looking_on


def has_few_rows(count: int) -> bool:
    """Whether a step of so many tokens is one that `linear_by_few_rows` is for."""
    return FEWEST_ROWS <= count <= MOST_ROWS


@contextmanager
def linear_by_few_rows(model: nn.Module) -> Iterator[None]:
    """Within this, linear layers of a model compute products of a few rows by `few_rows_linear`.

    Layers of other classes, or with a forward of their own, stay as they are. Other threads that
    call the model meanwhile get the same but for rounding.
    """
    replaced = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and "forward" not in module.__dict__
    ]
    for module in replaced:
        module.__dict__["forward"] = looking_on(partial(_forward, module))
    try:
        yield
    finally:
        for module in replaced:
            module.__dict__.pop("forward", None)


def is_compiled(model: nn.Module) -> bool:
    """Whether parts of a model are graphs, which call no layer one by one."""
    return any(module._compiled_call_impl is not None for module in model.modules())


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = module.weight, module.bias
    if takes_rows(x, weight, bias):
        return few_rows_linear(x, weight, bias)
    return linear(x, weight, bias)
