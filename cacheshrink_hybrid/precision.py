"""What autocast is kept away from."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

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
