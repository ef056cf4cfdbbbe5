"""Models that fail at a chosen call, as a device out of memory or an interrupt makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel


@contextmanager
def failing(
    model: PreTrainedModel, error: BaseException, *, calls: tuple[int, ...], late: bool = False
) -> Iterator[None]:
    """Raise `error` in these forward passes, counted from 0.

    Args:
        late: behind the last block, when all have written their rows and states.
    """
    count = -1
    length = model.config.num_hidden_layers
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == length)

    def fail(*_: object) -> None:
        nonlocal count
        count += 1
        if count in calls:
            raise error

    watch = blocks[-1].register_forward_hook if late else blocks[0].register_forward_pre_hook
    hook = watch(fail)
    try:
        yield
    finally:
        hook.remove()
