"""A few rows times a large matrix: linear layers in a decoding step of a few sequences.

Such a product takes as long as the matrix takes to come from memory. Libraries that cut a matrix
into blocks and copy them, which pays for many rows, take about twice as long on CPUs with AVX2.
The reference is `torch.nn.functional.linear`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEWEST_ROWS, MOST_ROWS = 2, 16
"""Rows for which this is faster: a single one torch multiplies as fast as memory gives the matrix,
and many of them cost what they cost."""


def takes_rows(x: object, weight: object, bias: object = None) -> bool:
    """Whether these are a few rows and a plain matrix, all float32 and without gradients."""
    given = [weight] if bias is None else [weight, bias]
    if not (isinstance(x, Tensor) and all(type(one) in (Tensor, nn.Parameter) for one in given)):
        return False
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    width = x.shape[-1] if x.ndim else 0
    return (
        weight.ndim == 2
        and weight.shape[1] == width > 0
        and (bias is None or bias.shape == weight.shape[:1])
        and FEWEST_ROWS <= x.numel() // width <= MOST_ROWS
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and weight.is_contiguous()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, (..., N), of x (..., K) and weight (N, K) that `takes_rows` says yes to.
    Sums are taken in another order than torch's; with as many threads as torch's."""
    from .cpu import few_rows_linear_cpu  # with numba, which need not be there

    found = few_rows_linear_cpu(x.reshape(-1, x.shape[-1]).contiguous(), weight)
    found = found.view(*x.shape[:-1], len(weight))
    return found if bias is None else found.add_(bias)


def has_few_rows_kernel() -> bool:
    """Whether it is made for this CPU, one with AVX2 and no AVX-512."""
    from ..latents.cpu.registers import REGISTERS, Lookup  # with numba

    return REGISTERS.lookup is Lookup.NARROW
