"""Arguments of `convert_to_mla` that no record of settings holds, checked before any work."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def argument_faults(tokenizer: object, dtype: object, **flags: object) -> Iterator[str]:
    """What is wrong with a tokenizer, a precision, and what can only be True or False."""
    if tokenizer is not None and not callable(tokenizer):
        yield (
            f"tokenizer={tokenizer!r} is no tokenizer; give what AutoTokenizer.from_pretrained "
            "returns, or leave it out"
        )
    precision = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, "auto") and not (
        isinstance(precision, torch.dtype) and precision.is_floating_point
    ):
        yield (
            f"dtype={dtype!r} is no floating-point precision; give torch.float32, torch.bfloat16 "
            "or torch.float16, or leave it out for that of the model"
        )
    for name, value in flags.items():
        if not isinstance(value, bool):
            yield f"{name}={value!r} is neither True nor False; give one of them"
