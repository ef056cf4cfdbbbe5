"""`few_rows_linear` compiled for CPUs."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..host_code import kept
from ..latents.cpu.products import products
from ..workers import in_parallel, num_shares

LEAST_NUMBERS = 2**18
"""Of a matrix, for each of several threads."""


@kept
def multiply(rows, matrix, begin, end, out):
    """out[m, n] = rows[m] . matrix[n] for begin <= n < end. Four rows of the matrix at a time meet
    all rows, which stay in the cache."""
    part, to = matrix[begin:end], out[:, begin:end]
    products(rows, rows.shape[0], part, end - begin, rows.shape[1], to)


def few_rows_linear_cpu(x: Tensor, weight: Tensor) -> Tensor:
    """(M, N) of rows (M, K) and a matrix (N, K)."""
    out = torch.empty(len(x), len(weight))
    shares = num_shares(weight.numel(), LEAST_NUMBERS)
    ends = [len(weight) * share // shares for share in range(shares + 1)]
    given = x.detach().numpy(), weight.detach().numpy()
    to = out.numpy()
    in_parallel([partial(multiply, *given, begin, end, to) for begin, end in pairwise(ends)])
    return out
