"""Tables of numbers that are worked out once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps

import torch
from torch import Tensor

from ..lasting import lasting_tensors


def table(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorates a function of plain values, such as a width and a device: its tensor is made at the
    first call and kept. A compiled graph takes what is kept as an input; what is not is made by the
    graph, at every call of it.
    """
    known: dict[tuple[Hashable, ...], Tensor] = {}

    @wraps(make)
    def kept(*key: Hashable) -> Tensor:
        found = known.get(key)
        if found is not None:
            return found
        if torch.compiler.is_compiling():
            return make(*key)
        with lasting_tensors(), torch.device("cpu"):  # whatever the caller makes tensors on
            found = make(*key)
        if type(found) is Tensor:  # not the stand-in of a tracer
            known[key] = found
        return found

    return kept
