"""Where products are rounded to 16 bits, and what autocast is kept away from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> AbstractContextManager:
    """Within this context operations on the device of `like` keep the dtypes that they are given.

    States are computed in float32 and stored in 16 bits or less; autocast would do the former in
    its own dtype, and refuses to put float16 and bfloat16 into one tensor.
    """
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""As wide as an element of so many bytes."""


def as_integers(tensor: Tensor) -> Tensor:
    """The bits of a tensor's elements, which autocast leaves alone and which equal themselves, as
    NaN does not."""
    return tensor.view(INTEGERS[tensor.element_size()])


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16, and torch can tell."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def fast_products(like: Tensor) -> AbstractContextManager:
    """Within this context factors of matrix products of float32 are rounded to bfloat16 where they
    are computed on a CPU that multiplies those faster; sums stay in float32."""
    if like.device.type == "cpu" and like.dtype == torch.float32 and multiplies_bfloat16():
        # The cache of autocast would keep a copy of every weight.
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    return nullcontext()
